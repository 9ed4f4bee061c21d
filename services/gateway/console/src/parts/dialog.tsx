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

  // Closed by the dialog itself, the focus goes back to what has opened it.
  const close = (answer: "yes" | "no") => dialog.current?.close(answer);
  const onClose = () => {
    question.value = null;
    asked.answer(dialog.current?.returnValue === "yes");
  };
  return (
    <dialog ref={dialog} class="card question" aria-labelledby="question" onClose={onClose}>
      <p id="question">{asked.text}</p>
      <div class="actions">
        <button onClick={() => close("no")}>{texts.dialog.no}</button>
        <button class="danger" onClick={() => close("yes")}>{asked.yes}</button>
      </div>
    </dialog>
  );
}
