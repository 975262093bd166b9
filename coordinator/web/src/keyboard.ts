// Keys that work anywhere on the page.

import { currentLive, startNew, stop } from "./chat";
import { focusComposer, focusSearch, toggleSidebar } from "./view";

export function handleKey(event: KeyboardEvent): void {
  if (event.isComposing) return; // the key belongs to an input method
  const isCommand = event.ctrlKey || event.metaKey;
  const key = event.key.toLowerCase();
  if (isCommand && event.shiftKey && key === "o") run(event, newChat);
  else if (isCommand && !event.shiftKey && key === "k") run(event, focusSearch);
  else if (isCommand && !event.shiftKey && key === "b") run(event, toggleSidebar);
  else if (key === "escape" && currentLive.value !== null && !isSomethingOpen()) run(event, () => stop());
}

export function newChat(): void {
  startNew();
  focusComposer();
}

function run(event: KeyboardEvent, action: () => void): void {
  event.preventDefault();
  action();
}

/** A dialog or menu takes Escape for itself. */
function isSomethingOpen(): boolean {
  return document.querySelector("dialog[open], :popover-open") !== null;
}
