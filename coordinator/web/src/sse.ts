// Server-sent events over fetch: EventSource can neither POST nor be stopped cleanly.
// Grammar: HTML standard, section 9.2.5 "Parsing an event stream".

export interface ServerEvent {
  event: string;
  data: string;
  /** The last id that the stream has named, up to and with this event; "" before the first. */
  id: string;
}

/** A total parser: any text, cut anywhere, gives the same events as the whole text at once. */
export class SseParser {
  private line = "";
  private data: string[] = [];
  private event = "";
  private id = "";
  private afterCarriageReturn = false;
  private atStart = true;

  push(chunk: string): ServerEvent[] {
    const events: ServerEvent[] = [];
    let text = chunk;
    if (this.atStart && text.length > 0) {
      this.atStart = false;
      if (text.startsWith("\uFEFF")) text = text.slice(1);
    }
    let from = 0;
    for (let index = 0; index < text.length; index += 1) {
      const character = text.charCodeAt(index);
      const isLineFeed = character === 10;
      const isCarriageReturn = character === 13;
      if (!isLineFeed && !isCarriageReturn) {
        this.afterCarriageReturn = false;
        continue;
      }
      // CR LF is one line end even when the two arrive in different chunks.
      if (!(isLineFeed && this.afterCarriageReturn)) this.endLine(this.line + text.slice(from, index), events);
      this.line = "";
      from = index + 1;
      this.afterCarriageReturn = isCarriageReturn;
    }
    this.line += text.slice(from);
    return events;
  }

  private endLine(line: string, events: ServerEvent[]): void {
    if (line === "") {
      if (this.data.length > 0) events.push({ event: this.event || "message", data: this.data.join("\n"), id: this.id });
      this.data = [];
      this.event = "";
      return;
    }
    const colon = line.indexOf(":");
    if (colon === 0) return; // a comment: the coordinator's keep-alive
    const field = colon < 0 ? line : line.slice(0, colon);
    let value = colon < 0 ? "" : line.slice(colon + 1);
    if (value.startsWith(" ")) value = value.slice(1);
    if (field === "data") this.data.push(value);
    else if (field === "event") this.event = value;
    else if (field === "id" && !value.includes("\0")) this.id = value;
  }
}

/** The events of a response body. `onBytes` is called for every piece, keep-alives included. */
export async function* readEvents(
  body: ReadableStream<Uint8Array>,
  onBytes: () => void = () => {},
): AsyncGenerator<ServerEvent> {
  const parser = new SseParser();
  // One decoder for the whole stream: a character's bytes may be split over two pieces.
  const decoder = new TextDecoder();
  const reader = body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      onBytes();
      yield* parser.push(decoder.decode(value, { stream: true }));
    }
  } finally {
    // The stream may already be broken; then there is nothing left to cancel.
    await reader.cancel().catch(() => {});
  }
}
