import type { ComponentChildren } from "preact";
import { useId, useRef } from "preact/hooks";

interface PopoverProps {
  label: string;
  trigger: ComponentChildren;
  triggerClass: string;
  side?: "left" | "right";
  testId?: string;
  children: (close: () => void) => ComponentChildren;
}

/** A button with a panel in the browser's top layer, which brings Escape, outside clicks and focus return. */
export function Popover({ label, trigger, triggerClass, side = "left", testId, children }: PopoverProps) {
  const id = useId();
  const button = useRef<HTMLButtonElement>(null);
  const panel = useRef<HTMLDivElement>(null);
  const place = (event: { newState: string }): void => {
    if (event.newState !== "open" || button.current === null || panel.current === null) return;
    placeBeside(button.current.getBoundingClientRect(), panel.current.style, side);
  };
  return (
    <>
      <button ref={button} type="button" class={triggerClass} popovertarget={id} aria-label={label} title={label}
        data-testid={testId}>
        {trigger}
      </button>
      <div ref={panel} id={id} class="popover" popover="auto" role="dialog" aria-label={label}
        onBeforeToggle={place} onToggle={() => panel.current !== null && keepInSight(panel.current)}>
        {children(() => panel.current?.hidePopover())}
      </div>
    </>
  );
}

const GAP_PX = 6;
const EDGE_PX = 10;

function placeBeside(anchor: DOMRect, style: CSSStyleDeclaration, side: "left" | "right"): void {
  const isLow = anchor.top > innerHeight * 0.6;
  style.inset = "auto";
  if (isLow) style.bottom = `${innerHeight - anchor.top + GAP_PX}px`;
  else style.top = `${anchor.bottom + GAP_PX}px`;
  if (side === "left") style.left = `${Math.max(EDGE_PX, anchor.left)}px`;
  else style.right = `${Math.max(EDGE_PX, innerWidth - anchor.right)}px`;
}

/** The panel's size is known only once it is shown; its fade-in hides the move. */
function keepInSight(panel: HTMLElement): void {
  const { left, right, width } = panel.getBoundingClientRect();
  if (left >= EDGE_PX && right <= innerWidth - EDGE_PX) return;
  panel.style.right = "auto";
  panel.style.left = `${Math.max(EDGE_PX, Math.min(left, innerWidth - width - EDGE_PX))}px`;
}
