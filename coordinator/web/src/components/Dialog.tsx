import type { ComponentChildren } from "preact";
import { useEffect, useId, useRef } from "preact/hooks";

import { CloseIcon } from "./Icons";

interface DialogProps {
  title: string;
  /** Called once the dialog is gone, however that came about. */
  onClose: () => void;
  /** A dialog that shows something for the only time stays when the page beside it is clicked. */
  isSticky?: boolean;
  isWide?: boolean;
  testId?: string;
  children: (close: () => void) => ComponentChildren;
}

/** A modal dialog of the browser's own, which brings Escape, the focus trap and the focus's return. */
export function Dialog({ title, onClose, isSticky = false, isWide = false, testId, children }: DialogProps) {
  const dialog = useRef<HTMLDialogElement>(null);
  const id = useId();
  useEffect(() => dialog.current?.showModal(), []);
  const close = (): void => dialog.current?.close();
  return (
    <dialog ref={dialog} class={`dialog ${isWide ? "is-wide" : ""}`} aria-labelledby={id} data-testid={testId} onClose={onClose}
      onClick={(event) => { if (!isSticky && event.target === dialog.current) close(); }}>
      <div class="dialog-body">
        <div class="dialog-head">
          <h2 id={id}>{title}</h2>
          <button type="button" class="icon-button" onClick={close} aria-label="Close"><CloseIcon /></button>
        </div>
        {children(close)}
      </div>
    </dialog>
  );
}
