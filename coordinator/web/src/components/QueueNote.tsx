import { useEffect, useRef, useState } from "preact/hooks";

import type { QueuePlace } from "../api";
import { currentLive, stop } from "../chat";
import { isWorthSaying, queueSentence } from "../queue";

/** Where a waiting request stands, and the way out. Spoken by QueueAnnouncer, so nothing here is a live region. */
export function QueueNote({ queue }: { queue: QueuePlace }) {
  return (
    <div class="queue-note" aria-live="off">
      <span class="queue-dots" aria-hidden="true"><i /><i /><i /></span>
      <p data-testid="queue">{queueSentence(queue)}</p>
      <button type="button" class="button" data-testid="queue-cancel" onClick={() => stop()}>Cancel</button>
    </div>
  );
}

/** Speaks a waiting request's place to screen readers, politely and not at every step. */
export function QueueAnnouncer() {
  const queue = currentLive.value?.queue.value ?? null;
  const said = useRef<QueuePlace | null>(null);
  const [text, setText] = useState("");
  useEffect(() => {
    if (queue === null) {
      said.current = null;
      setText("");
    } else if (isWorthSaying(said.current, queue)) {
      said.current = queue;
      setText(`The pool is busy. ${queueSentence(queue)}.`);
    }
  }, [queue]);
  return <p class="sr-only" role="status" data-testid="queue-announcer">{text}</p>;
}
