/**
 * Micro-benchmarks of each stage a block goes through. Every case is printed beside a plain copy of the same bytes from
 * the same run, so that figures of different machines and days can be compared.
 *
 *   node bench/.out/bench/micro.js [--seconds 1] [--keep] [part of a stage's name ...]
 *
 * --keep writes the figures to bench/results/.
 */
import { join } from "node:path";
import { parseArgs } from "node:util";
import { compressionStages, digestStages, zeroStages } from "./codec-stages.ts";
import { fileStages } from "./file-stages.ts";
import { keepResults, measure } from "./measuring.ts";
import { tableStages } from "./table-stages.ts";
import { wireStages } from "./wire-stages.ts";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { seconds: { type: "string", default: "1" }, keep: { type: "boolean", default: false } },
});

const files = fileStages();
try {
  const stages = [
    ...(await digestStages()),
    ...zeroStages(),
    ...(await compressionStages()),
    ...wireStages(),
    ...tableStages(),
    ...files.stages,
  ].filter(({ name }) => positionals.length === 0 || positionals.some((part) => name.includes(part)));
  const figures = await measure(stages, Number(values.seconds));
  if (values.keep) {
    console.log(`\nkept in ${keepResults(join(import.meta.dirname, "..", "..", "results"), "micro", figures)}`);
  }
} finally {
  files.remove();
}
