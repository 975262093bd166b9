import { useEffect, useRef, useState } from "preact/hooks";

import { editAndAsk } from "../chat";
import type { Message } from "../conversation";
import { whyNobodyToAsk } from "../pool";
import { stickToBottom } from "../scroll";
import { CopyButton } from "./CopyButton";
import { PencilIcon } from "./Icons";
import { Versions } from "./Versions";

interface UserMessageProps {
  message: Message;
  isLocked: boolean;
}

/** What a person wrote is shown as it is: text, never Markdown. */
export function UserMessage({ message, isLocked }: UserMessageProps) {
  const [isEditing, setIsEditing] = useState(false);
  if (isEditing) return <Editor message={message} close={() => setIsEditing(false)} />;
  return (
    <article class="message user">
      <h2 class="sr-only">You wrote</h2>
      <div class="bubble" dir="auto" data-testid="message-user">{message.text}</div>
      <div class="actions">
        <Versions id={message.id} isLocked={isLocked} />
        <CopyButton text={message.text} />
        <button type="button" class="small-button" data-testid="edit" onClick={() => setIsEditing(true)} disabled={isLocked}
          aria-label="Edit and send again" title="Edit and send again">
          <PencilIcon />
        </button>
      </div>
    </article>
  );
}

function Editor({ message, close }: { message: Message; close: () => void }) {
  const [text, setText] = useState(message.text);
  const area = useRef<HTMLTextAreaElement>(null);
  useEffect(() => {
    area.current?.focus();
    area.current?.setSelectionRange(text.length, text.length);
  }, []);
  const whyNot = whyNobodyToAsk.value;
  const canSend = text.trim() !== "" && whyNot === null;
  const send = (): void => {
    if (!canSend) return;
    close();
    stickToBottom();
    void editAndAsk(message.id, text.trim());
  };
  const onKeyDown = (event: KeyboardEvent): void => {
    if (event.isComposing) return;
    if (event.key === "Escape") close();
    else if (event.key === "Enter" && !event.shiftKey) send();
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  return (
    <article class="message user editing">
      <textarea ref={area} class="editor" data-testid="editor" aria-label="Edit your message" dir="auto" value={text}
        rows={Math.min(10, text.split("\n").length + 1)} onInput={(event) => setText(event.currentTarget.value)} onKeyDown={onKeyDown} />
      <div class="editor-actions">
        <button type="button" class="button" onClick={close}>Cancel</button>
        <button type="button" class="button is-primary" data-testid="resend" onClick={send} disabled={!canSend}
          title={whyNot ?? undefined}>Send</button>
      </div>
    </article>
  );
}
