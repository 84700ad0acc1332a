/**
 * Property tests draw the same cases in every run, so that a run that is green stays green. `REPLICATE_TEST_SEED=random` (or a number)
 * draws others; the seed of a failure is printed with it.
 */
import fc from "fast-check";

const wanted = process.env["REPLICATE_TEST_SEED"] ?? "20260101";
if (wanted !== "random") fc.configureGlobal({ seed: Number(wanted) });
