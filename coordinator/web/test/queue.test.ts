import { describe, expect, it } from "vitest";

import { decodeChunk, decodePool, decodeQueue, type QueuePlace } from "../src/api";
import { LiveAnswer } from "../src/live";
import { describeWait, isWorthSaying, queueSentence } from "../src/queue";

const at = (place: number, numWaiting = 7, expectedWaitS: number | null = null): QueuePlace => ({ place, numWaiting, expectedWaitS });

describe("a place in the queue", () => {
  it("is read from a chunk, beside anything else in it", () => {
    const chunk = {
      choices: [{ index: 0, delta: {}, finish_reason: null }],
      decentllm: { queue: { place: 3, num_waiting: 7, expected_wait_s: 12.5 } },
    };
    expect(decodeChunk(JSON.stringify(chunk))).toEqual([{ kind: "queue", queue: at(3, 7, 12.5) }]);
  });

  it.each([
    null, 7, "3", [], {}, { place: 0 }, { place: -1 }, { place: 1.5 }, { place: "3" }, { place: 1e300 }, { place: Number.NaN },
  ])("%j is none", (value) => expect(decodeQueue(value)).toBeNull());

  it.each<[object, QueuePlace]>([
    [{ place: 3, num_waiting: 2 }, at(3, 3)],
    [{ place: 3, num_waiting: "many", expected_wait_s: -5 }, at(3, 3)],
    [{ place: 3, num_waiting: 7, expected_wait_s: "soon" }, at(3, 7)],
    [{ place: 3, num_waiting: 7, expected_wait_s: 0 }, at(3, 7, 0)],
  ])("%j makes sense all the same", (value, queue) => expect(decodeQueue(value)).toEqual(queue));

  it("is a sentence", () => {
    expect(queueSentence(at(3, 7, 15.2))).toBe("You are number 3 of 7; about 15 seconds");
    expect(queueSentence(at(3, 7))).toBe("You are number 3 of 7");
    expect(queueSentence(at(1, 7, 3.4))).toBe("You are next; about 3 seconds");
    expect(queueSentence(at(1, 1))).toBe("You are next");
  });

  it.each<[number, string]>([
    [0, "a moment"], [1.9, "a moment"], [2.2, "about 2 seconds"], [9.4, "about 9 seconds"], [12, "about 10 seconds"], [13, "about 15 seconds"],
    [57, "about 55 seconds"], [58, "about 1 minute"], [89, "about 1 minute"], [91, "about 2 minutes"], [3500, "about 58 minutes"],
    [3599, "more than an hour"], [1e300, "more than an hour"],
  ])("that lasts %d s is said as coarsely as it is known: %s", (seconds, words) => expect(describeWait(seconds)).toBe(words));

  it("is spoken at every step near the front, and rarely far behind", () => {
    const spoken: number[] = [];
    let said: QueuePlace | null = null;
    for (let place = 40; place >= 1; place -= 1) {
      if (!isWorthSaying(said, at(place, 40))) continue;
      spoken.push(place);
      said = at(place, 40);
    }
    expect(spoken.slice(-3)).toEqual([3, 2, 1]);
    expect(spoken[0]).toBe(40);
    expect(spoken.length).toBeLessThan(15);
  });

  it("is not spoken again while it stays, and is when it grows", () => {
    expect(isWorthSaying(at(2), at(2, 9, 4))).toBe(false);
    expect(isWorthSaying(at(2), at(4))).toBe(true);
  });
});

describe("an answer that waits", () => {
  it("shows its place until anything else arrives, and after a re-route again", () => {
    const live = new LiveAnswer("c", "m", "model", 0);
    expect(live.queue.value).toBeNull();
    live.take({ kind: "queue", queue: at(2) }, 10);
    expect(live.queue.value).toEqual(at(2));
    live.take({ kind: "nodes", nodes: [{ name: "ada", layers: "0-1" }] }, 20);
    expect(live.queue.value).toBeNull();
    live.take({ kind: "text", text: "Hello" }, 30);
    live.take({ kind: "queue", queue: at(1) }, 40);
    expect(live.queue.value).toEqual(at(1));
    live.take({ kind: "text", text: " you" }, 50);
    expect(live.queue.value).toBeNull();
    expect(live.text.value).toBe("Hello you");
  });

  it("counts neither its wait nor its places as tokens", () => {
    const live = new LiveAnswer("c", "m", "model", 0);
    live.take({ kind: "queue", queue: at(2) }, 10);
    live.take({ kind: "text", text: "Yes" }, 5_000);
    expect(live.facts("stop", null)).toMatchObject({ numTokens: 1, timeToFirstTokenMs: 5_000 });
  });
});

describe("the pool", () => {
  it("tells how many wait and where to join, or says nothing", () => {
    const joinLink = "decentllm://127.0.0.1:8000/join";
    expect(decodePool({ num_waiting: 3, join_link: joinLink })).toMatchObject({ numWaiting: 3, joinLink });
    expect(decodePool({ num_waiting: -3, join_link: "javascript:alert(1)" })).toMatchObject({ numWaiting: 0, joinLink: null });
  });
});
