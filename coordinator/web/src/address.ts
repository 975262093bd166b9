// The open conversation's id is the address's fragment, so that reload, back and bookmarks work. It is only ever
// compared with stored ids.

import { effect } from "@preact/signals";

import { current, path } from "./chat";

export function conversationInAddress(): string | null {
  const match = /^#([0-9a-z]{10,40})$/.exec(location.hash);
  return match?.[1] ?? null;
}

/** Keeps fragment and title in step with what is shown. */
export function keepAddress(): void {
  effect(() => {
    const { id, title } = current.value;
    const isStored = path.value.length > 0;
    document.title = isStored ? `${title} · DecentLLM` : "DecentLLM";
    const wanted = isStored ? `#${id}` : "";
    if (location.hash === wanted) return;
    // A chat that was just begun takes the place of the empty page; switching chats can be undone with "back".
    const address = wanted || location.pathname + location.search;
    if (location.hash === "") history.replaceState(null, "", address);
    else history.pushState(null, "", address);
  });
}
