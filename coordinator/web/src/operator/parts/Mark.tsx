import type { ComponentChildren } from "preact";

import type { Mark, Shape } from "../words";

const SHAPES: Record<Shape, ComponentChildren> = {
  full: <circle cx="7" cy="7" r="5" fill="currentColor" />,
  ring: <circle cx="7" cy="7" r="4.2" />,
  half: <><circle cx="7" cy="7" r="4.2" /><path d="M7 2.800a4.200 4.200 0 0 1 0 8.400z" fill="currentColor" /></>,
  pause: <path d="M4.700 3v8M9.300 3v8" stroke-width="2.400" />,
  cross: <path d="M3.500 3.500l7 7M10.500 3.500l-7 7" stroke-width="2" />,
  empty: <circle cx="7" cy="7" r="4.2" stroke-dasharray="2 2.400" />,
  warn: <path d="M7 2.200l5.200 9.300H1.800zM7 6v2.300M7 10v.1" />,
};

/** A state by shape and word; the colour only adds to it. */
export function StateMark({ mark }: { mark: Mark }) {
  return (
    <span class={`mark mark-${mark.shape}`}>
      <svg viewBox="0 0 14 14" width="14" height="14" fill="none" stroke="currentColor" stroke-width="1.600" stroke-linecap="round"
        stroke-linejoin="round" aria-hidden="true">
        {SHAPES[mark.shape]}
      </svg>
      {mark.word}
    </span>
  );
}

export function Ago({ text, timeS }: { text: string; timeS: number | null }) {
  if (timeS === null) return <>{text}</>;
  const date = new Date(timeS * 1000);
  return <time dateTime={date.toISOString()} title={date.toLocaleString()}>{text}</time>;
}
