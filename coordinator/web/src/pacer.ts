// Tokens of a far-away pool come in bursts. The page reveals what has come over a few frames, so that it flows.

/** Frames over which a backlog is spread: about a tenth of a second, less than a person notices as delay. */
const SPREAD_FRAMES = 7;

/** How many characters to show in the next frame, when `shown` of `arrived` are on the screen. */
export function nextLength(shown: number, arrived: number): number {
  if (arrived <= shown) return arrived;
  return Math.min(arrived, shown + Math.max(2, Math.ceil((arrived - shown) / SPREAD_FRAMES)));
}

/** Cuts without splitting a surrogate pair, half of which would show as a replacement character. */
export function cutAt(text: string, length: number): string {
  if (length >= text.length) return text;
  const last = text.charCodeAt(length - 1);
  return text.slice(0, last >= 0xd800 && last <= 0xdbff ? length - 1 : length);
}
