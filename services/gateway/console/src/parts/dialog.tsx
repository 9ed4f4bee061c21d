/** Questions before something that cannot be undone. */
import { signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { texts } from "../texts";

interface Question {
  text: string;
  yes: string;
  answer: (isYes: boolean) => void;
}

const question = signal<Question | null>(null);

/** Whether the user says yes. */
export function ask(text: string, yes: string): Promise<boolean> {
  return new Promise((answer) => {
    question.value = { text, yes, answer };
  });
}

export function Dialogs() {
  const asked = question.value;
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    if (asked) dialog.current?.showModal();
  }, [asked]);
  if (!asked) return null;

  const close = (isYes: boolean) => {
    question.value = null;
    asked.answer(isYes);
  };
  return (
    <dialog ref={dialog} class="card question" aria-labelledby="question" onClose={() => close(false)}>
      <p id="question">{asked.text}</p>
      <div class="actions">
        <button onClick={() => close(false)}>{texts.dialog.no}</button>
        <button class="danger" onClick={() => close(true)}>{asked.yes}</button>
      </div>
    </dialog>
  );
}
