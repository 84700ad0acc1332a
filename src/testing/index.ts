/** For tests of programs that embed the library. */
export { createMemoryImage } from "../image/memory.ts";
