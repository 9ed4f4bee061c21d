/** Who is signed in. */
import { signal } from "@preact/signals";
import type { Session } from "../api/types";
import { Failure, isSignedOut, result, root } from "../api/client";
import { texts } from "../texts";

/** undefined: not known yet; null: nobody was. It stays when it ends, and with it what is on the screen. */
export const session = signal<Session | null | undefined>(undefined);
/** How often somebody has signed in: what was read before may be another key's. */
export const signIns = signal(0);

export async function resume(): Promise<void> {
  try {
    const found = await result(root.GET("/session"));
    session.value = found.scopes.length ? found : null;
  } catch {
    session.value = null; // signing in will say what is wrong
  }
}

/** @throws {Failure} if the key is not valid. */
export async function signIn(key: string): Promise<void> {
  // No header takes other letters, and no key has them.
  if (!/^[ -~]*$/.test(key.trim())) throw new Failure(401, texts.signIn.wrong);
  const headers = { Authorization: `Bearer ${key.trim()}` };
  begin(await result(root.POST("/session", { headers })));
}

/** Go on if somebody has signed in again in another tab. */
export async function lookAgain(): Promise<void> {
  try {
    const found = await result(root.GET("/session"));
    if (isSignedOut.value && found.scopes.length) begin(found);
  } catch {
    // the server is away: signing in will say it
  }
}

function begin(found: Session): void {
  session.value = found;
  isSignedOut.value = false;
  signIns.value += 1;
}

/** End the session, and forget everything: the next one at this browser may be somebody else. */
export async function signOut(): Promise<void> {
  await result(root.DELETE("/session"));
  sessionStorage.clear();
  history.replaceState(null, "", location.pathname);
  location.reload();
}

export const may = (scope: Session["scopes"][number]): boolean => session.value?.scopes.includes(scope) ?? false;
