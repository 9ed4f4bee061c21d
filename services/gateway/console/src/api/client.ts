/** Calls of the public API, in the browser's session. */
import { signal } from "@preact/signals";
import createClient from "openapi-fetch";
import { texts } from "../texts";
import type { paths } from "./schema";

export const BASE = "/v2/everydream-v1";

/** Operations of the endpoint. */
export const api = createClient<paths>({ baseUrl: BASE, headers: { "X-Requested-With": "console" } });
/** Operations beside it, such as signing in. */
export const root = createClient<paths>({ baseUrl: "/", headers: { "X-Requested-With": "console" } });

export interface Budget {
  name: string;
  used: number;
  allowed: number;
}

/** What the server answered instead of a result. */
export class Failure extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly mistakes: readonly string[] = [],
    /** The budget that has not enough left. */
    readonly budget?: Budget,
  ) {
    super(message);
  }
}

/** Whether there is no such thing, or not any more. */
export const isMissing = (error: unknown): boolean => error instanceof Failure && error.status === 404;

/** Whether the server will never answer what was asked, such as the page of a list at a place that is none. */
export const isRefused = (error: unknown): boolean => error instanceof Failure && error.status === 400;

/** Whether the server lets this browser in no more, or not yet. */
export const isSignedOut = signal(false);

/** Find out whether the session is still valid, which a refused stream does not tell; false: the server does not answer. */
export async function checkSession(): Promise<boolean> {
  try {
    const { data } = await root.GET("/session");
    if (data?.scopes.length === 0) isSignedOut.value = true;
    return data !== undefined;
  } catch {
    return false;
  }
}

interface Answer<T> {
  data?: T;
  error?: unknown;
  response: Response;
}

/**
 * The body of a good answer.
 *
 * @throws {Failure} for every other answer, and with status 0 if there is none.
 */
export async function result<T>(call: Promise<Answer<T>>): Promise<T> {
  let answer: Answer<T>;
  try {
    answer = await call;
  } catch {
    throw new Failure(0, texts.error.offline);
  }
  if (answer.response.ok) return answer.data as T;
  throw failureOf(answer.response.status, answer.error);
}

/** What an answer's status and decoded body say. */
export function failureOf(status: number, body: unknown): Failure {
  if (status === 401) isSignedOut.value = true;
  const said = (body ?? {}) as { error?: string; mistakes?: string[]; budget?: Budget };
  // A proxy says so in its own words when it finds no server.
  const unsaid = [502, 503, 504].includes(status) ? texts.error.offline : texts.error.unknown;
  return new Failure(status, said.error ?? unsaid, said.mistakes, said.budget);
}
