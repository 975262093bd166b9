// What is open on the page, apart from any conversation.

import { signal } from "@preact/signals";

import { change, settings } from "./settings";

const narrow = matchMedia("(max-width: 760px)");

export const isNarrow = signal(narrow.matches);
narrow.addEventListener("change", () => (isNarrow.value = narrow.matches));

/** On a phone the sidebar lies over the page and starts closed; on a wide screen the choice is kept. */
export const isDrawerOpen = signal(false);
export const isSettingsOpen = signal(false);

export function isSidebarOpen(): boolean {
  return isNarrow.value ? isDrawerOpen.value : settings.value.isSidebarOpen;
}

export function toggleSidebar(): void {
  if (isNarrow.value) isDrawerOpen.value = !isDrawerOpen.value;
  else change({ isSidebarOpen: !settings.value.isSidebarOpen });
}

export function focusComposer(): void {
  isDrawerOpen.value = false;
  requestAnimationFrame(() => document.querySelector<HTMLTextAreaElement>("#composer")?.focus());
}

export function focusSearch(): void {
  if (!isSidebarOpen()) toggleSidebar();
  requestAnimationFrame(() => document.querySelector<HTMLInputElement>("#search")?.focus());
}

export async function copyText(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyThroughSelection(text); // no clipboard interface on plain HTTP, where home pools live
  }
}

function copyThroughSelection(text: string): boolean {
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "sr-only";
  document.body.append(area);
  area.select();
  const isCopied = document.execCommand("copy");
  area.remove();
  return isCopied;
}
