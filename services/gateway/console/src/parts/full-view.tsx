/** A picture that fills the window, and beside it what is known of it. */
import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { texts } from "../texts";

interface FullViewProps {
  label: string;
  picture: ComponentChildren;
  /** Of the picture, beside the button that closes. */
  actions: ComponentChildren;
  children: ComponentChildren;
  /** Called with the name of an arrow key. */
  walk: (key: string) => void;
  onClose: () => void;
}

export function FullView({ label, picture, actions, children, walk, onClose }: FullViewProps) {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => dialog.current?.showModal(), []);

  const onKeyDown = (event: KeyboardEvent) => {
    const inControl = event.target instanceof HTMLInputElement || event.target instanceof HTMLSelectElement;
    if (inControl || !event.key.startsWith("Arrow")) return;
    event.preventDefault();
    walk(event.key);
  };
  // Closed by the dialog itself, the focus goes back to what has opened it.
  return (
    <dialog ref={dialog} class="viewer" aria-label={label} onKeyDown={onKeyDown} onClose={onClose}>
      <div class="stage">{picture}</div>
      <aside>
        <div class="actions">
          <button class="main" autofocus onClick={() => dialog.current?.close()}>{texts.viewer.close}</button>
          {actions}
        </div>
        {children}
      </aside>
    </dialog>
  );
}
