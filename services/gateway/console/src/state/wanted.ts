/** Which jobs are listed, as the address of the list says it. */
import type { Kind, Status } from "../api/types";
import { texts } from "../texts";

export interface Wanted {
  /** Empty: any. */
  kind: Kind | "";
  status: Status | "";
  /** What their ids begin with; empty: anything. */
  id: string;
  /** The `next` of the page before; empty: the newest are listed. */
  from: string;
}

/** The list that an address names; what it asks for of no kind or status that there is, is left out. */
export function wantedIn(address: string): Wanted {
  const query = new URLSearchParams(address);
  const [kind, status] = [query.get("kind") ?? "", query.get("status") ?? ""];
  return {
    kind: Object.hasOwn(texts.kind, kind) ? (kind as Kind) : "",
    status: Object.hasOwn(texts.status, status) ? (status as Status) : "",
    id: query.get("id") ?? "",
    from: query.get("from") ?? "",
  };
}

export function addressOf(asked: Wanted): string {
  const query = new URLSearchParams(Object.entries(asked).filter(([, value]) => value)).toString();
  return query ? `/?${query}` : "/";
}

export const sameJobs = (one: Wanted, other: Wanted): boolean => addressOf(one) === addressOf(other);
