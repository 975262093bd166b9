import { useEffect, useRef } from "preact/hooks";

import { ask, current, currentLive, stop } from "../chat";
import { describeModel } from "../layers";
import { model, pool, poolError, whyNobodyToAsk } from "../pool";
import { SendIcon, StopIcon } from "./Icons";
import { stickToBottom } from "../scroll";
import { draft } from "../view";
import { PrivacyNote } from "./Privacy";

export function Composer({ isEmpty }: { isEmpty: boolean }) {
  const text = draft.value;
  const area = useRef<HTMLTextAreaElement>(null);
  const isLive = currentLive.value !== null;
  const conversation = current.value.id;
  useEffect(() => {
    // On a phone the keyboard would cover half of the page before anybody asked for it.
    if (matchMedia("(pointer: fine)").matches) area.current?.focus();
  }, [conversation]);
  useEffect(() => grow(area.current), [text]);

  const whyNot = whyNobodyToAsk.value;
  const canSend = text.trim() !== "" && !isLive && whyNot === null;
  const send = (): void => {
    if (!canSend) return;
    draft.value = "";
    stickToBottom();
    void ask(text.trim());
  };
  const onKeyDown = (event: KeyboardEvent): void => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  };
  return (
    <footer class="composer-dock">
      <PoolBanner />
      <div class="composer">
        <label class="sr-only" for="composer">Message</label>
        <textarea ref={area} id="composer" data-testid="composer" rows={1} placeholder="Ask the pool" enterkeyhint="send"
          dir="auto" value={text} onInput={(event) => (draft.value = event.currentTarget.value)} onKeyDown={onKeyDown} />
        {isLive ? (
          <button type="button" class="round-button" data-testid="stop" onClick={() => stop()} aria-label="Stop answering"
            title="Stop (Esc)">
            <StopIcon />
          </button>
        ) : (
          <button type="button" class="round-button" data-testid="send" onClick={send} disabled={!canSend} aria-label="Send"
            title={whyNot ?? "Send (Enter)"}>
            <SendIcon />
          </button>
        )}
      </div>
      <PrivacyNote isLong={isEmpty} />
    </footer>
  );
}

/** One plain sentence while the pool cannot answer. */
function PoolBanner() {
  const sentence = bannerText();
  const isLost = poolError.value !== null;
  return (
    <div class="banner-place" role="status">
      {sentence !== null && (
        <p class="banner" data-testid="pool-banner">
          <span class={`dot dot-${isLost ? "lost" : (model.value?.state ?? "incomplete")}`} aria-hidden="true" />
          <span>{sentence}</span>
        </p>
      )}
    </div>
  );
}

function bannerText(): string | null {
  if (poolError.value !== null) return poolError.value;
  // Most often the list is there before anybody has typed anything.
  if (pool.value === null && draft.value.trim() === "") return null;
  if (model.value === null) return whyNobodyToAsk.value;
  return model.value.state === "ready" ? null : describeModel(model.value);
}

const MAX_HEIGHT_PX = 240;

function grow(area: HTMLTextAreaElement | null): void {
  if (area === null) return;
  area.style.height = "auto";
  area.style.height = `${Math.min(area.scrollHeight, MAX_HEIGHT_PX)}px`;
}
