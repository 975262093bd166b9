import { useEffect, useRef, useState } from "preact/hooks";

import { needsSignIn } from "../account";
import { current, currentLive, path } from "../chat";
import { follow, isAtBottom, keepPlace, stickToBottom } from "../scroll";
import { AssistantMessage } from "./AssistantMessage";
import { ArrowDownIcon } from "./Icons";
import { UserMessage } from "./UserMessage";

/** A conversation of thousands of messages opens at its end; earlier ones are drawn on request. */
const NUM_SHOWN = 40;

export function MessageList() {
  const area = useRef<HTMLElement>(null);
  const content = useRef<HTMLDivElement>(null);
  const conversation = current.value.id;
  const [numShown, setNumShown] = useState(NUM_SHOWN);
  useEffect(() => setNumShown(NUM_SHOWN), [conversation]);
  useEffect(() => {
    if (area.current !== null && content.current !== null) return follow(area.current, content.current);
    return undefined;
  }, [conversation]);

  const messages = path.value;
  const live = currentLive.value;
  const shown = messages.slice(-numShown);
  // Signed out, asking again would only be refused.
  const isLocked = live !== null || needsSignIn.value;
  return (
    <main class="scroll" ref={area} tabindex={-1}>
      <h1 class="sr-only">{current.value.title}</h1>
      <div class="messages" ref={content} role="log" aria-live="polite" aria-label="Conversation">
        {shown.length < messages.length && (
          <button type="button" class="text-button earlier" onClick={() => keepPlace(() => setNumShown(numShown + NUM_SHOWN))}>
            Show earlier messages
          </button>
        )}
        {shown.map((message) =>
          message.role === "user" ? (
            <UserMessage key={message.id} message={message} isLocked={isLocked} />
          ) : (
            <AssistantMessage key={message.id} message={message} live={live?.messageId === message.id ? live : null}
              isLast={message === messages.at(-1)} isLocked={isLocked} />
          ),
        )}
      </div>
      {!isAtBottom.value && (
        <button type="button" class="jump-button" onClick={stickToBottom} aria-label="Go to the newest text" title="Go to the newest text">
          <ArrowDownIcon />
        </button>
      )}
    </main>
  );
}
