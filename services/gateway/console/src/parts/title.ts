import { useEffect } from "preact/hooks";
import { texts } from "../texts";

/** What the browser calls the page, in its tabs and in its history. */
export function useTitle(name: string): void {
  useEffect(() => {
    document.title = `${name} · ${texts.product}`;
  }, [name]);
}
