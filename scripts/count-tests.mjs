// `count-tests.mjs FAILED-STEPS REPORT...`: the sum of vitest's JSON reports as one plain line. A step that failed outside the tests,
// a report that is missing, and a file that could not be loaded each count as one failure, so that the line never looks better than the run.
import { existsSync, readFileSync } from "node:fs";

const [steps = "0", ...reports] = process.argv.slice(2);
let passed = 0;
let failed = Number(steps);
let skipped = 0;
for (const path of reports) {
  if (!existsSync(path)) {
    failed++;
    continue;
  }
  const report = JSON.parse(readFileSync(path, "utf8"));
  passed += report.numPassedTests;
  failed += report.numFailedTests;
  skipped += report.numPendingTests + report.numTodoTests;
  /** @type {{ status: string, assertionResults: { status: string }[] }[]} */
  const files = report.testResults;
  failed += files.filter(
    (file) => file.status === "failed" && !file.assertionResults.some(({ status }) => status === "failed"),
  ).length;
}
console.log(`${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ""}`);
process.exitCode = failed > 0 || passed === 0 ? 1 : 0;
