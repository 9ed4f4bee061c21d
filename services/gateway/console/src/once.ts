/** Calls an action once, some time after the first of many requests for it. */
export function once(action: () => Promise<void>, after: number): () => void {
  let timer: number | undefined;
  return () => {
    timer ??= window.setTimeout(() => {
      timer = undefined;
      void action();
    }, after);
  };
}
