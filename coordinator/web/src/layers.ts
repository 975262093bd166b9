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

/** Devices that hold part of a model, in the order of its layers. */
export function holdersOf(pool: Pool, model: string): Holder[] {
  const holders: Holder[] = [];
  for (const node of pool.nodes) {
    for (const device of node.devices) {
      const range = device.model === model && device.layers !== null ? parseLayers(device.layers) : null;
      if (range === null) continue;
      const { name, state, doneBytes, totalBytes } = device;
      holders.push({ ...range, node: node.name, device: name, state, doneBytes, totalBytes });
    }
  }
  return holders.sort((one, other) => one.first - other.first || one.last - other.last);
}

/** Puts overlapping holders on as few rows as possible, so that replicas show below one another. */
export function rowsOf(holders: Holder[]): Holder[][] {
  const rows: Holder[][] = [];
  for (const holder of holders) {
    const row = rows.find((candidate) => (candidate.at(-1)?.last ?? -1) < holder.first);
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
