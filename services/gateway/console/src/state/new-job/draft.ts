/** The form survives a reload of its tab, but for what may be secret. */
import { EMPTY, type Form } from "./request";

const NAME = "new-job";

/** What was typed before the reload; else nothing. */
export function readDraft(): Form {
  try {
    const kept = JSON.parse(sessionStorage.getItem(NAME) ?? "null") as Partial<Form> | null;
    return kept ? { ...EMPTY, ...kept } : EMPTY;
  } catch {
    return EMPTY; // the browser keeps nothing, or another version of the page wrote it
  }
}

/** A bucket's keys are secret, and a webhook's address may have one in it. */
export function keepDraft(form: Form): void {
  const { bucket: _bucket, webhook: _webhook, ...kept } = form;
  try {
    if (form === EMPTY) sessionStorage.removeItem(NAME);
    else sessionStorage.setItem(NAME, JSON.stringify(kept));
  } catch {
    // it is full, or forbidden: a comfort less
  }
}
