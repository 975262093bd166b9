import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";

import type { LiveAnswer } from "../live";
import { cutAt, nextLength } from "../pacer";

/** After a frame that took long to draw, this many times as long is left to the rest of the page. */
const REST_FACTOR = 1.5;
const LONG_FRAME_MS = 10;

/** The text of a growing answer, at most once per animation frame and evenly; null when none is growing. */
export function useFlow(live: LiveAnswer | null): string | null {
  const [shown, setShown] = useState(() => live?.text.peek() ?? "");
  const drawnSince = useRef<number | null>(null);
  const restUntil = useRef(0);

  useLayoutEffect(() => {
    if (drawnSince.current === null) return;
    const now = performance.now();
    const cost = now - drawnSince.current;
    drawnSince.current = null;
    restUntil.current = cost > LONG_FRAME_MS ? now + cost * REST_FACTOR : 0;
  }, [shown]);

  useEffect(() => {
    if (live === null) return undefined;
    const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    let length = live.text.peek().length;
    let frame = requestAnimationFrame(function step() {
      frame = requestAnimationFrame(step);
      const text = live.text.peek();
      if (length >= text.length || performance.now() < restUntil.current) return;
      length = isCalm ? text.length : nextLength(length, text.length);
      drawnSince.current = performance.now();
      setShown(cutAt(text, length));
    });
    return () => cancelAnimationFrame(frame);
  }, [live]);

  return live === null ? null : shown;
}
