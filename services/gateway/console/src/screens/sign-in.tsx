import { useEffect, useRef, useState } from "preact/hooks";
import { Failure, isSignedOut } from "../api/client";
import { useTitle } from "../parts/title";
import { lookAgain, signIn } from "../state/session";
import { texts } from "../texts";

/** The way in. */
export function SignIn() {
  useTitle(texts.signIn.title);
  return (
    <main class="sign-in">
      <Form lead={texts.signIn.lead} />
    </main>
  );
}

/** The way back, above a page that keeps all that was typed into it. */
export function SignInAgain() {
  const dialog = useRef<HTMLDialogElement>(null);
  const isOpen = isSignedOut.value;
  useEffect(() => {
    if (!isOpen) return;
    dialog.current?.showModal();
    const look = () => void lookAgain();
    addEventListener("focus", look);
    return () => removeEventListener("focus", look);
  }, [isOpen]);
  if (!isOpen) return null;
  return (
    <dialog
      ref={dialog} class="sign-in-again" aria-labelledby="sign-in-title"
      onCancel={(event) => event.preventDefault()} onClose={() => isSignedOut.value && dialog.current?.showModal()}
    >
      <Form lead={texts.signIn.ended} />
    </dialog>
  );
}

function Form({ lead }: { lead: string }) {
  const [problem, setProblem] = useState("");
  const [isBusy, setBusy] = useState(false);

  const submit = async (event: SubmitEvent) => {
    event.preventDefault();
    const key = new FormData(event.currentTarget as HTMLFormElement).get("key") as string;
    setBusy(true);
    try {
      await signIn(key);
    } catch (error) {
      const isWrong = error instanceof Failure && error.status === 401;
      setProblem(isWrong ? texts.signIn.wrong : (error as Error).message);
      setBusy(false);
    }
  };

  return (
    <form class="card" onSubmit={(event) => void submit(event)}>
      <img src={new URL("../icon.svg", import.meta.url).href} alt="" width="48" height="48" />
      <h1 id="sign-in-title">{texts.product}</h1>
      <p class="lead">{lead}</p>
      <label for="key">{texts.signIn.key}</label>
      <input
        id="key" name="key" type="password" autocomplete="current-password" required autofocus
        aria-describedby="key-hint key-problem" aria-invalid={problem !== ""}
      />
      <p id="key-hint" class="hint">{texts.signIn.hint}</p>
      <p id="key-problem" class="problem" role="alert">{problem}</p>
      <button class="main" disabled={isBusy}>{texts.signIn.submit}</button>
    </form>
  );
}
