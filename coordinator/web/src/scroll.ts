// Following a growing answer, until the reader scrolls away.

import { signal } from "@preact/signals";

/** Whether the newest text is in sight; the page then keeps it there. */
export const isAtBottom = signal(true);

const NEAR_PX = 56;

let area: HTMLElement | null = null;

/** Watches a scrolling element and what is in it; returns the end of it. */
export function follow(element: HTMLElement, content: HTMLElement): () => void {
  area = element;
  stickToBottom();
  let lastTop = element.scrollTop;
  const onScroll = (): void => {
    const distance = element.scrollHeight - element.scrollTop - element.clientHeight;
    // Growing text also moves the bottom away; only a movement upwards is the reader's wish to stay.
    if (distance < NEAR_PX) isAtBottom.value = true;
    else if (element.scrollTop < lastTop) isAtBottom.value = false;
    lastTop = element.scrollTop;
  };
  const observer = new ResizeObserver(() => {
    if (isAtBottom.value) element.scrollTop = element.scrollHeight;
  });
  observer.observe(content);
  observer.observe(element);
  element.addEventListener("scroll", onScroll, { passive: true });
  return () => {
    observer.disconnect();
    element.removeEventListener("scroll", onScroll);
    if (area === element) area = null;
  };
}

export function stickToBottom(): void {
  isAtBottom.value = true;
  if (area !== null) area.scrollTop = area.scrollHeight;
}

/** Adds content above without moving what is read. */
export function keepPlace(change: () => void): void {
  const element = area;
  const fromBottom = element === null ? 0 : element.scrollHeight - element.scrollTop;
  change();
  requestAnimationFrame(() => {
    if (element !== null) element.scrollTop = element.scrollHeight - fromBottom;
  });
}
