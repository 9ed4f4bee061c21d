/** Who is signed in. */
import { signal } from "@preact/signals";
import type { Session } from "../api/types";
import { result, root, whenSignedOut } from "../api/client";


/** undefined: not known yet; null: nobody. */
export const session = signal<Session | null | undefined>(undefined);
/** Whether somebody was signed in before. */
export const hasEnded = signal(false);

whenSignedOut(() => {
  hasEnded.value ||= session.value != null;
  session.value = null;
});

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
  const headers = { Authorization: `Bearer ${key.trim()}` };
  session.value = await result(root.POST("/session", { headers }));
  hasEnded.value = false;
}

export async function signOut(): Promise<void> {
  await result(root.DELETE("/session"));
  session.value = null;
}

export const may = (scope: Session["scopes"][number]): boolean => session.value?.scopes.includes(scope) ?? false;
