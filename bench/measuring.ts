/** Runs stages with benny, prints each case beside a plain copy of the same bytes, and keeps the figures as JSON. */
import { execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { arch, cpus, platform } from "node:os";
import { join } from "node:path";
import { add, configure, suite } from "benny";
import { noise, ring } from "./contents.ts";

/** What one stage does to `bytes` bytes, in one or more ways. */
export interface Stage {
  readonly name: string;
  readonly bytes: number;
  readonly cases: readonly Case[];
}

export interface Case {
  readonly name: string;
  /** Handles `bytes` of the stage once. */
  readonly run: () => unknown;
}

export interface Figures {
  readonly name: string;
  readonly bytes: number;
  readonly operationsPerSecond: number;
  readonly gigabytesPerSecond: number;
  /** Time of this case over the time of a plain copy of as many bytes, in the same run. */
  readonly timesReference: number;
  readonly medianMicroseconds: number;
  readonly marginPercent: number;
  readonly samples: number;
}

export interface StageFigures {
  readonly name: string;
  readonly cases: readonly Figures[];
}

const referenceName = "reference: memory copy";

/** Prints as it goes: what is measured is read by people first. */
export async function measure(stages: readonly Stage[], seconds: number): Promise<readonly StageFigures[]> {
  const figures: StageFigures[] = [];
  for (const stage of stages) {
    console.log(`\n${stage.name}, ${stage.bytes} bytes`);
    const measured = await measureStage(stage, seconds);
    for (const line of measured) print(line);
    figures.push({ name: stage.name, cases: measured });
  }
  return figures;
}

async function measureStage(stage: Stage, seconds: number): Promise<readonly Figures[]> {
  const source = ring(stage.bytes, noise);
  const copy = new Uint8Array(stage.bytes);
  const cases: readonly Case[] = [{ name: referenceName, run: () => copy.set(source()) }, ...stage.cases];
  const summary = await suite(
    stage.name,
    configure({ cases: { minSamples: 20, maxTime: seconds } }),
    ...cases.map(({ name, run }) =>
      add(name, () => {
        run();
      }),
    ),
  );
  const reference = summary.results.find(({ name }) => name === referenceName);
  if (reference === undefined) throw new Error("the reference was not measured");
  // benny rounds `ops` to whole numbers; the mean keeps slow cases exact.
  return summary.results.map(({ name, details, margin, samples }) => ({
    name,
    bytes: stage.bytes,
    operationsPerSecond: rounded(1 / details.mean),
    gigabytesPerSecond: rounded(stage.bytes / details.mean / 1e9),
    timesReference: rounded(details.mean / reference.details.mean),
    medianMicroseconds: rounded(details.median * 1e6),
    marginPercent: margin,
    samples,
  }));
}

function rounded(value: number): number {
  return Number(value.toPrecision(4));
}

function print(figures: Figures): void {
  const speed = `${figures.gigabytesPerSecond.toFixed(2)} GB/s`.padStart(13);
  const time = `${figures.medianMicroseconds.toFixed(2)} us`.padStart(14);
  const ratio = `${figures.timesReference.toFixed(2)} x copy`.padStart(15);
  console.log(`  ${figures.name.padEnd(34)}${speed}${time}${ratio}   ±${figures.marginPercent} %`);
}

/** Writes `<kind>-<date>-<commit>-node<major>.json` and returns its path. */
export function keepResults(folder: string, kind: string, stages: readonly StageFigures[]): string {
  const date = new Date().toISOString();
  const commit = shortCommit();
  const file = `${kind}-${date.slice(0, 10)}-${commit}-node${process.versions.node.split(".")[0]}.json`;
  const path = join(folder, file);
  const machine = { cores: cpus().length, model: cpus()[0]?.model ?? "unknown", platform: platform(), arch: arch() };
  mkdirSync(folder, { recursive: true });
  writeFileSync(
    path,
    `${JSON.stringify({ kind, date, commit, node: process.version, machine, stages }, undefined, 2)}\n`,
  );
  return path;
}

function shortCommit(): string {
  try {
    const git = (...words: string[]): string =>
      execFileSync("git", words, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).trim();
    const changed = git("status", "--porcelain", "--untracked-files=no", "--", "src") === "" ? "" : "-changed";
    return `${git("rev-parse", "--short", "HEAD")}${changed}`;
  } catch {
    // A copy without its history: the figures are still worth keeping.
    return "nocommit";
  }
}
