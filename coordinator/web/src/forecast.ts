// What the coordinator expects of a model's lanes, in words.

import { numberOf } from "./decode";
import { isRecord } from "./errors";
import { formatRate, formatSeconds } from "./format";

export interface Forecast {
  tpotS: number;
  ttftS: number;
  tokensPerS: number;
  numSessions: number;
}

export function decodeForecast(value: unknown): Forecast | null {
  if (!isRecord(value)) return null;
  const read = {
    tpotS: numberOf(value["tpot_s"]),
    ttftS: numberOf(value["ttft_s"]),
    tokensPerS: numberOf(value["tokens_per_s"]),
    numSessions: numberOf(value["num_sessions"]),
  };
  return read.tpotS > 0 ? read : null;
}

/** Each figure with what it is of, for a row of them. */
export function figuresOf(forecast: Forecast): { name: string; figure: string }[] {
  return [
    { name: "per token", figure: formatTokenTime(forecast.tpotS) },
    { name: "to the first token", figure: formatSeconds(forecast.ttftS * 1000) },
    { name: "at most", figure: formatRate(forecast.tokensPerS) },
    { name: "at once", figure: `${forecast.numSessions.toLocaleString("en")} ${forecast.numSessions === 1 ? "request" : "requests"}` },
  ];
}

export function describeForecast(forecast: Forecast): string {
  return figuresOf(forecast).map(({ name, figure }) => `${figure} ${name}`).join(", ");
}

/** Shorter than what formatSeconds is for: small models take a few milliseconds. */
function formatTokenTime(seconds: number): string {
  const milliseconds = seconds * 1000;
  return milliseconds < 10 ? `${milliseconds.toFixed(1)} ms` : milliseconds < 950 ? `${Math.round(milliseconds)} ms` : formatSeconds(milliseconds);
}
