// The plan as the coordinator says it: lanes, who holds what and why. Past this file all types hold.

import { nameOf, nullableNumberOf, numberOf, recordsOf, sentenceFrom } from "../decode";
import { isRecord } from "../errors";
import { decodeForecast, describeForecast, type Forecast } from "../forecast";
import { formatBytes, formatRate, plural } from "../format";
import { describeLayers } from "../layers";
import { notUnderstood } from "./overview";

export interface Holder {
  nodeId: string;
  node: string;
  device: string;
  part: string;
  layers: string;
  reason: string;
  why: string[];
  numRequests: number;
  numKvTokens: number;
}

export interface Lane {
  stages: { layers: string; holders: Holder[] }[];
  forecast: Forecast | null;
}

export interface Newcomer {
  like: string;
  memoryBytes: number;
  layers: string;
  reason: string;
  forecast: Forecast | null;
  /** How many of them a first lane needs; 0 where there is one, null where none would ever do. */
  numNeeded: number | null;
}

export interface ModelPlan {
  name: string;
  variant: string;
  numLayers: number;
  numReplicas: number;
  wantedTokensPerS: number | null;
  message: string;
  forecast: Forecast | null;
  lanes: Lane[];
  others: Holder[];
  newcomer: Newcomer | null;
}

export interface Plan {
  boundTpotS: number;
  boundTtftS: number;
  models: ModelPlan[];
  idle: Holder[];
}

const MAX_SENTENCES = 12;

export function decodePlan(body: unknown): Plan {
  if (!isRecord(body)) throw notUnderstood();
  return {
    boundTpotS: numberOf(body["bound_tpot_s"]),
    boundTtftS: numberOf(body["bound_ttft_s"]),
    models: recordsOf(body["models"]).map(decodeModelPlan),
    idle: recordsOf(body["idle"]).map(decodeHolder),
  };
}

function decodeModelPlan(model: Record<string, unknown>): ModelPlan {
  return {
    name: nameOf(model["name"]),
    variant: nameOf(model["variant"]),
    numLayers: numberOf(model["num_layers"]),
    numReplicas: numberOf(model["num_replicas"]),
    wantedTokensPerS: nullableNumberOf(model["wanted_tokens_per_s"]),
    message: sentenceFrom(model["message"]),
    forecast: decodeForecast(model["forecast"]),
    lanes: recordsOf(model["lanes"]).map(decodeLane),
    others: recordsOf(model["others"]).map(decodeHolder),
    newcomer: isRecord(model["newcomer"]) ? decodeNewcomer(model["newcomer"]) : null,
  };
}

function decodeLane(lane: Record<string, unknown>): Lane {
  const stages = recordsOf(lane["stages"]).map((stage) => ({
    layers: nameOf(stage["layers"]),
    holders: recordsOf(stage["holders"]).map(decodeHolder),
  }));
  return { stages, forecast: decodeForecast(lane["forecast"]) };
}

function decodeHolder(holder: Record<string, unknown>): Holder {
  const why: unknown[] = Array.isArray(holder["why"]) ? holder["why"].slice(0, MAX_SENTENCES) : [];
  return {
    nodeId: nameOf(holder["node_id"]),
    node: nameOf(holder["node"]),
    device: nameOf(holder["device"]),
    part: nameOf(holder["part"]),
    layers: nameOf(holder["layers"]),
    reason: sentenceFrom(holder["reason"]),
    why: why.map(sentenceFrom).filter((sentence) => sentence !== ""),
    numRequests: numberOf(holder["num_requests"]),
    numKvTokens: numberOf(holder["num_kv_tokens"]),
  };
}

function decodeNewcomer(newcomer: Record<string, unknown>): Newcomer {
  return {
    like: nameOf(newcomer["like"]),
    memoryBytes: numberOf(newcomer["memory_bytes"]),
    layers: nameOf(newcomer["layers"]),
    reason: sentenceFrom(newcomer["reason"]),
    forecast: decodeForecast(newcomer["forecast"]),
    numNeeded: nullableNumberOf(newcomer["num_needed"]),
  };
}

/** A device in the table: the number of its lane, null outside of lanes. */
export interface PlanRow {
  lane: number | null;
  holder: Holder;
}

export function rowsOfPlan(model: ModelPlan): PlanRow[] {
  const rows: PlanRow[] = model.lanes.flatMap(({ stages }, index) =>
    stages.flatMap(({ holders }) => holders.map((holder) => ({ lane: index + 1, holder }))),
  );
  return [...rows, ...model.others.map((holder) => ({ lane: null, holder }))];
}

export function demandOf({ numReplicas, wantedTokensPerS }: ModelPlan): string {
  const floor = `At least ${plural(numReplicas, "copy", "copies")} by the operator’s floor`;
  return wantedTokensPerS === null ? `${floor}; nobody has asked yet.` : `${floor}; ${formatRate(wantedTokensPerS)} are wanted.`;
}

/** What one more device would add; the same sentences as `decentllm-coordinator plan` has. */
export function newcomerSentence({ newcomer, forecast }: ModelPlan): string {
  if (newcomer === null) return "";
  const device = `One more device like ${newcomer.like} (${formatBytes(newcomer.memoryBytes)})`;
  if (newcomer.numNeeded === null) return `${device} would not help: it can hold no layer of this model.`;
  if (newcomer.numNeeded > 0) return `${device} is not enough: a first lane needs ${newcomer.numNeeded} of them.`;
  if (newcomer.layers === "") return `${device} would stand by: ${newcomer.reason}.`;
  return `${device} would take ${describeLayers(newcomer.layers)} (${newcomer.reason}). ${afterwards(forecast, newcomer.forecast)}`;
}

function afterwards(before: Forecast | null, after: Forecast | null): string {
  if (after === null) return "There would be no lane yet.";
  return before === null ? `A first lane: ${describeForecast(after)}.` : `Together then: ${describeForecast(after)}.`;
}
