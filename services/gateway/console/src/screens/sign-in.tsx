import { useState } from "preact/hooks";
import { Failure } from "../api/client";
import { hasEnded, signIn } from "../state/session";
import { texts } from "../texts";

export function SignIn() {
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
    <main class="sign-in">
      <form class="card" onSubmit={submit}>
        <img src={new URL("../icon.svg", import.meta.url).href} alt="" width="48" height="48" />
        <h1>{texts.product}</h1>
        <p class="lead">{hasEnded.value ? texts.signIn.ended : texts.signIn.lead}</p>
        <label for="key">{texts.signIn.key}</label>
        <input
          id="key" name="key" type="password" autocomplete="current-password" required autofocus
          aria-describedby="key-hint key-problem" aria-invalid={problem !== ""}
        />
        <p id="key-hint" class="hint">{texts.signIn.hint}</p>
        <p id="key-problem" class="problem" role="alert">{problem}</p>
        <button class="main" disabled={isBusy}>{texts.signIn.submit}</button>
      </form>
    </main>
  );
}
