/** Addresses behind the `#`, with their parameters: `#/draw?model=ID`. */
import { useHashLocation } from "wouter-preact/use-hash-location";

interface Options {
  replace?: boolean;
}

/** The router's hook: the path alone; `useSearch` gives the parameters. */
export function useHash(): [string, (to: string, options?: Options) => void] {
  return [useHashLocation()[0].split("?")[0]!, go];
}

useHash.hrefs = (href: string): string => `#${href}`;
useHash.searchHook = (): string => useHashLocation()[0].split("?")[1] ?? "";

/** The library's own would put the parameters before the `#`, where they stay on every screen. */
export function go(to: string, { replace = false }: Options = {}): void {
  history[replace ? "replaceState" : "pushState"](null, "", `#${to}`);
  dispatchEvent(new HashChangeEvent("hashchange"));
}
