// Loaded in front of the command (`node --import`) for bench/undo-cost.mjs only: a receiver that keeps no old content. What it makes has no points
// to go back to; the product itself has no such switch.
const module = new URL("../dist/replication/old-content.js", import.meta.url).href;
const { OldContent } = await import(module);
OldContent.prototype.keep = async () => undefined;
OldContent.prototype.keepWhole = async () => undefined;
