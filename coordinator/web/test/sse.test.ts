import { describe, expect, it } from "vitest";

import { readEvents, SseParser, type ServerEvent } from "../src/sse";

const STREAM =
  ': keep-alive\n\ndata: {"a":1}\n\nevent: note\r\ndata: one\r\ndata: two\r\n\r\nid: 7\rdata:three\r\rdata\n\n: end\ndata: [DONE]\n\n';

const EVENTS: ServerEvent[] = [
  { event: "message", data: '{"a":1}', id: "" },
  { event: "note", data: "one\ntwo", id: "" },
  { event: "message", data: "three", id: "7" },
  { event: "message", data: "", id: "7" },
  { event: "message", data: "[DONE]", id: "7" },
];

function parse(...pieces: string[]): ServerEvent[] {
  const parser = new SseParser();
  return pieces.flatMap((piece) => parser.push(piece));
}

function bodyOf(pieces: Uint8Array[]): ReadableStream<Uint8Array> {
  return new ReadableStream({
    start(controller) {
      for (const piece of pieces) controller.enqueue(piece);
      controller.close();
    },
  });
}

async function collect(source: AsyncIterable<ServerEvent>): Promise<ServerEvent[]> {
  const events: ServerEvent[] = [];
  for await (const event of source) events.push(event);
  return events;
}

describe("SseParser", () => {
  it("reads comments, fields and every kind of line end", () => {
    expect(parse(STREAM)).toEqual(EVENTS);
  });

  it("gives the same events wherever the stream is cut", () => {
    for (let at = 0; at <= STREAM.length; at += 1) expect(parse(STREAM.slice(0, at), STREAM.slice(at))).toEqual(EVENTS);
    expect(parse(...STREAM)).toEqual(EVENTS);
  });

  it("drops an event that was never finished", () => {
    expect(parse("data: half")).toEqual([]);
    expect(parse("data: half\n")).toEqual([]);
  });

  it("skips a byte order mark at the start only", () => {
    expect(parse("\uFEFFdata: a\n\ndata: \uFEFFb\n\n").map((event) => event.data)).toEqual(["a", "\uFEFFb"]);
  });

  it.each(["data: injected", "\n\n", "event: error", "\r\n\r\ndata: [DONE]\r\n\r\n", ": comment", "\u2028"])(
    "keeps %j inside a token as text (G18)",
    (token) => {
      const data = JSON.stringify({ text: token });
      expect(parse(`data: ${data}\n\n`)).toEqual([{ event: "message", data, id: "" }]);
    },
  );
});

describe("readEvents", () => {
  it("joins characters whose bytes were split (G14)", async () => {
    const bytes = new TextEncoder().encode("data: Grüße 👋🏽\n\n");
    for (let at = 1; at < bytes.length; at += 1) {
      const events = await collect(readEvents(bodyOf([bytes.slice(0, at), bytes.slice(at)])));
      expect(events).toEqual([{ event: "message", data: "Grüße 👋🏽", id: "" }]);
    }
  });

  it("reports keep-alives as a sign of life", async () => {
    let numHeard = 0;
    const bytes = new TextEncoder().encode(": still here\n\n");
    expect(await collect(readEvents(bodyOf([bytes, bytes]), () => (numHeard += 1)))).toEqual([]);
    expect(numHeard).toBe(2);
  });
});
