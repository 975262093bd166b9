// What is open on the page, apart from any conversation.

import { signal } from "@preact/signals";

import { change, settings } from "./settings";

const narrow = matchMedia("(max-width: 760px)");

export const isNarrow = signal(narrow.matches);
narrow.addEventListener("change", () => (isNarrow.value = narrow.matches));

/** On a phone the sidebar lies over the page and starts closed; on a wide screen the choice is kept. */
export const isDrawerOpen = signal(false);
export const isSettingsOpen = signal(false);
export const isContributeOpen = signal(false);
export const isSignOutOpen = signal(false);

/** What is typed and not sent yet: it outlives the composer, which a sign-in takes the place of. */
export const draft = signal("");

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
