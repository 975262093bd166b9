// Layer ranges as the wire writes them ("0-11", both ends included) and who holds which layer.

import type { Pool, PoolModel } from "./api";

export interface LayerRange {
  first: number;
  last: number;
}

export interface Holder extends LayerRange {
  node: string;
  device: string;
  state: string;
  doneBytes: number;
  totalBytes: number;
  /** From 1; null outside of complete lanes. */
  lane: number | null;
  reason: string;
}

export function parseLayers(text: string): LayerRange | null {
  const match = /^(\d{1,5})(?:\s*[-–]\s*(\d{1,5}))?$/.exec(text.trim());
  if (match === null) return null;
  const first = Number(match[1]);
  const last = match[2] === undefined ? first : Number(match[2]);
  return last >= first ? { first, last } : null;
}

export function describeLayers(text: string): string {
  const range = parseLayers(text);
  if (range === null) return text;
  return range.first === range.last ? `layer ${range.first}` : `layers ${range.first}–${range.last}`;
}

/** Devices that hold part of a model: lane by lane, and within one in the order of its layers. */
export function holdersOf(pool: Pool, model: string): Holder[] {
  const holders: Holder[] = [];
  for (const node of pool.nodes) {
    for (const device of node.devices) {
      const range = device.model === model && device.layers !== null ? parseLayers(device.layers) : null;
      if (range === null) continue;
      const { name, state, doneBytes, totalBytes, lane, reason } = device;
      holders.push({ ...range, node: node.name, device: name, state, doneBytes, totalBytes, lane, reason });
    }
  }
  return holders.sort((one, other) => laneOf(one) - laneOf(other) || one.first - other.first || one.last - other.last);
}

function laneOf({ lane }: Holder): number {
  return lane ?? Number.MAX_SAFE_INTEGER;
}

/** One holder in a sentence: for whoever points at its bar. */
export function describeHolder(holder: Holder): string {
  const what = describeLayers(`${holder.first}-${holder.last}`);
  const where = holder.lane === null ? "" : `, lane ${holder.lane}`;
  return `${holder.node}: ${what}${where}${holder.reason === "" ? "" : `. Why: ${holder.reason}`}`;
}

/** A row for each lane; overlapping holders of one lane, and those of none, on as few rows as possible. */
export function rowsOf(holders: Holder[]): Holder[][] {
  const rows: Holder[][] = [];
  for (const holder of holders) {
    const row = rows.find((candidate) => candidate[0]?.lane === holder.lane && (candidate.at(-1)?.last ?? -1) < holder.first);
    if (row === undefined) rows.push([holder]);
    else row.push(holder);
  }
  return rows;
}

/** A plain sentence on a model's state; the coordinator's own words come first. */
export function describeModel(model: PoolModel): string {
  if (model.message.trim() !== "") return model.message;
  if (model.state === "ready") return "Ready.";
  if (model.state === "loading") return "The nodes are loading their layers.";
  return "Waiting for nodes: some layers have no holder yet.";
}
