import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { InvariantError, ReplicationError } from "../../src/base/errors.ts";
import { limits } from "../../src/base/limits.ts";
import { createFrameCounts, type FrameCounts, type SessionRole } from "../../src/wire/credit.ts";
import type { Message } from "../../src/wire/messages.ts";
import {
  createSessionRules,
  eventOf,
  type JoinState,
  joinTable,
  nameOfEvent,
  type SessionEvent,
  type SessionRules,
  type SessionState,
  sessionEvents,
  sessionTable,
} from "../../src/wire/session-rules.ts";
import { goldenFrames } from "./golden-messages.ts";
import { thrownBy } from "./decoding.ts";

const roles: readonly SessionRole[] = ["sender", "receiver"];

function golden(name: string): Message {
  const found = goldenFrames[name];
  if (found === undefined) throw new Error(`no golden frame ${name}`);
  return found.message;
}

/** A message of each event. */
function messageFor(event: SessionEvent): Message {
  switch (event) {
    case "hello":
      return golden("hello-offer");
    case "open":
      return golden("open-first");
    case "opened":
      return golden("opened-fresh");
    case "data":
      return golden("data-parts");
    case "zero-repeat":
      return { type: "zero", first: 0, count: 1, repeat: true };
    case "hello-join":
    case "ask-pages":
    case "pages":
    case "ask-blocks":
    case "blocks":
    case "ask-parts":
    case "parts":
    case "data-repeat":
    case "zero":
    case "grant":
    case "ask-repeat":
    case "commit":
    case "durable":
    case "pass":
    case "synced":
    case "heartbeat":
    case "error":
    case "bye":
      return golden(event);
  }
}

type Said = readonly [SessionRole, SessionEvent];

const greet: readonly Said[] = [
  ["sender", "hello"],
  ["receiver", "hello"],
];
const openUp: readonly Said[] = [...greet, ["sender", "open"], ["receiver", "opened"]];

/** A way into every state. */
const ways: Readonly<Record<SessionState, readonly Said[]>> = {
  new: [],
  greeting: [["sender", "hello"]],
  greeted: greet,
  opening: [...greet, ["sender", "open"]],
  opened: openUp,
  committing: [...openUp, ["sender", "commit"]],
  settled: [...openUp, ["sender", "commit"], ["receiver", "durable"]],
  "sender-left": [...openUp, ["sender", "bye"]],
  "receiver-left": [...openUp, ["receiver", "error"]],
  ended: [...openUp, ["sender", "bye"], ["receiver", "bye"]],
};

function say(rules: SessionRules, role: SessionRole, [speaker, event]: Said, connection = 0): void {
  if (speaker === role) rules.sent(messageFor(event), connection);
  else rules.received(messageFor(event), connection);
}

function rulesIn(role: SessionRole, state: SessionState): SessionRules {
  const rules = createSessionRules(role);
  for (const said of ways[state]) say(rules, role, said);
  expect(rules.state).toBe(state);
  return rules;
}

const states = Object.keys(sessionTable) as readonly SessionState[];

test("every event has a message and every message its event", () => {
  for (const event of sessionEvents) expect(eventOf(messageFor(event))).toBe(event);
  const seen = new Set(Object.values(goldenFrames).map(({ message }) => eventOf(message)));
  for (const event of seen) expect(sessionEvents).toContain(event);
});

describe.each(roles)("at the %s", (role) => {
  const cases = states.flatMap((state) =>
    roles.flatMap((speaker) => sessionEvents.map((event) => ({ state, speaker, event }))),
  );

  test.each(cases)("$state: $speaker says $event", ({ state, speaker, event }) => {
    const rules = rulesIn(role, state);
    const next = sessionTable[state][speaker][event];
    if (next !== undefined) {
      say(rules, role, [speaker, event]);
      expect(rules.state).toBe(next);
      return;
    }
    const error = thrownBy(() => say(rules, role, [speaker, event]));
    expect(rules.state).toBe(state);
    expect((error as Error).message).toContain(`${nameOfEvent(event)} in state ${state}`);
    if (speaker === role) expect(error).toBeInstanceOf(InvariantError);
    else expect(error).toMatchObject({ code: "protocol-violation", details: { state } });
  });
});

describe("what must never pass", () => {
  const forbidden: readonly (readonly [string, SessionState, SessionRole, SessionEvent])[] = [
    ["anything before hello", "new", "sender", "open"],
    ["an answer before hello", "new", "receiver", "hello"],
    ["a second hello", "greeted", "sender", "hello"],
    ["open before the answer to hello", "greeting", "sender", "open"],
    ["data before opened", "opening", "sender", "data"],
    ["a second open", "opened", "sender", "open"],
    ["a second opened", "opened", "receiver", "opened"],
    ["commit before opened", "opening", "sender", "commit"],
    ["new data after commit", "committing", "sender", "data"],
    ["new zeros after commit", "committing", "sender", "zero"],
    ["questions after commit", "committing", "sender", "ask-blocks"],
    ["durable before commit", "opened", "receiver", "durable"],
    ["a second durable", "settled", "receiver", "durable"],
    ["data after durable", "settled", "sender", "data"],
    ["repeats after durable", "settled", "sender", "data-repeat"],
    ["commit after durable", "settled", "sender", "commit"],
    ["a pass after durable", "settled", "sender", "pass"],
    ["synced before a pass", "opened", "receiver", "synced"],
    ["a second answer to the end", "settled", "receiver", "synced"],
    ["a sender that says synced", "committing", "sender", "synced"],
    ["a receiver that sends data", "opened", "receiver", "data"],
    ["a receiver that commits", "opened", "receiver", "commit"],
    ["a sender that grants", "opened", "sender", "grant"],
    ["a sender that says durable", "committing", "sender", "durable"],
    ["a join on the first connection", "greeted", "sender", "hello-join"],
    ["anything after bye", "sender-left", "sender", "heartbeat"],
    ["anything after error", "receiver-left", "receiver", "durable"],
    ["a heartbeat before hello", "new", "sender", "heartbeat"],
  ];
  test.each(forbidden)("%s", (_what, state, speaker, event) => {
    for (const role of roles) {
      const rules = rulesIn(role, state);
      expect(() => say(rules, role, [speaker, event])).toThrow(nameOfEvent(event));
      expect(rules.state).toBe(state);
    }
  });

  test("the end is the end", () => {
    expect(sessionTable.ended).toEqual({ sender: {}, receiver: {} });
    expect(joinTable.ended).toEqual({ sender: {}, receiver: {} });
  });

  test("both may report an error as soon as they have spoken, and heartbeats run in every state of an open session", () => {
    for (const state of ["greeted", "opening", "opened", "committing", "settled"] as const) {
      for (const speaker of roles) {
        expect(sessionTable[state][speaker].heartbeat).toBe(state);
        expect(sessionTable[state][speaker].error).toBe(`${speaker}-left`);
        expect(sessionTable[state][speaker].bye).toBe(`${speaker}-left`);
      }
    }
    expect(sessionTable.greeting.sender.error).toBe("sender-left");
  });
});

describe("further connections", () => {
  const join: Said = ["sender", "hello-join"];
  const joinAnswer: Said = ["receiver", "hello"];
  /** What is said on the further connection before the session opens and after it. */
  const joinWays: Readonly<Record<JoinState, readonly [readonly Said[], readonly Said[]]>> = {
    new: [[], []],
    joining: [[join], []],
    joined: [[join, joinAnswer], []],
    "sender-left": [[join, joinAnswer], [["sender", "error"]]],
    "receiver-left": [[join, joinAnswer], [["receiver", "error"]]],
    ended: [
      [join, joinAnswer],
      [
        ["sender", "bye"],
        ["receiver", "bye"],
      ],
    ],
  };
  const joinStates = Object.keys(joinTable) as readonly JoinState[];
  const cases = roles.flatMap((role) =>
    joinStates.flatMap((state) =>
      roles.flatMap((speaker) => sessionEvents.map((event) => ({ role, state, speaker, event }))),
    ),
  );

  test.each(cases)("$role, $state: $speaker says $event", ({ role, state, speaker, event }) => {
    const rules = rulesIn(role, "greeted");
    const [before, after] = joinWays[state];
    for (const said of before) say(rules, role, said, 3);
    if (state !== "joining") for (const said of openUp.slice(greet.length)) say(rules, role, said);
    for (const said of after) say(rules, role, said, 3);
    expect(rules.joinState(3)).toBe(state);
    const next = joinTable[state][speaker][event];
    if (next !== undefined && event !== "hello-join") {
      say(rules, role, [speaker, event], 3);
      expect(rules.joinState(3)).toBe(next);
    } else {
      expect(() => say(rules, role, [speaker, event], 3)).toThrow(nameOfEvent(event));
      expect(rules.joinState(3)).toBe(state);
    }
    expect(rules.joinState(4)).toBe("new");
  });

  const joined = (role: SessionRole, state: SessionState): SessionRules => {
    const rules = rulesIn(role, "greeted");
    for (const said of [join, joinAnswer]) say(rules, role, said, 1);
    for (const said of ways[state].slice(greet.length)) say(rules, role, said);
    expect(rules.state).toBe(state);
    return rules;
  };

  test("join before the session was greeted, after open, and twice", () => {
    for (const state of ["new", "greeting", "opening", "opened", "committing", "settled"] as const) {
      for (const role of roles) {
        const rules = rulesIn(role, state);
        expect(() => say(rules, role, ["sender", "hello-join"], 1)).toThrow("hello (join) on connection 1");
      }
    }
    const twice = joined("receiver", "greeted");
    expect(thrownBy(() => twice.received(messageFor("hello-join"), 1))).toMatchObject({ code: "protocol-violation" });
  });

  test("open before a join was answered", () => {
    for (const role of roles) {
      const rules = rulesIn(role, "greeted");
      say(rules, role, ["sender", "hello-join"], 1);
      expect(() => say(rules, role, ["sender", "open"])).toThrow("open before every join was answered");
      expect(rules.state).toBe("greeted");
      say(rules, role, ["receiver", "hello"], 1);
      say(rules, role, ["sender", "open"]);
      expect(rules.state).toBe("opening");
    }
  });

  test("data before opened and after durable", () => {
    for (const role of roles) {
      for (const state of ["greeted", "opening", "settled"] as const) {
        const rules = joined(role, state);
        expect(() => say(rules, role, ["sender", "data"], 1)).toThrow(`while the session is in state ${state}`);
        expect(() => say(rules, role, ["sender", "zero-repeat"], 1)).toThrow(`while the session is in state ${state}`);
      }
    }
  });

  test("new data may arrive after commit on another connection, and is not sent after it", () => {
    joined("receiver", "committing").received(messageFor("data"), 1);
    expect(thrownBy(() => joined("sender", "committing").sent(messageFor("data"), 1))).toBeInstanceOf(InvariantError);
    joined("sender", "committing").sent(messageFor("data-repeat"), 1);
  });

  test("what arrives after the session is over is let pass; nothing new is sent", () => {
    for (const state of ["sender-left", "receiver-left", "ended"] as const) {
      joined("receiver", state).received(messageFor("data"), 1);
      expect(thrownBy(() => joined("sender", state).sent(messageFor("data"), 1))).toBeInstanceOf(InvariantError);
      joined("sender", state).sent(messageFor("bye"), 1);
    }
  });

  test("questions, commit and answers stay on the first connection", () => {
    for (const event of ["open", "ask-pages", "ask-blocks", "ask-parts", "commit"] as const) {
      expect(thrownBy(() => joined("receiver", "opened").received(messageFor(event), 1))).toBeInstanceOf(
        ReplicationError,
      );
    }
    for (const event of ["opened", "pages", "grant", "ask-repeat", "durable", "synced"] as const) {
      expect(thrownBy(() => joined("sender", "opened").received(messageFor(event), 1))).toBeInstanceOf(
        ReplicationError,
      );
    }
  });

  test("a join that was refused: the sender does not open, and an open that crossed the refusal is no violation", () => {
    const sender = rulesIn("sender", "greeted");
    sender.sent(messageFor("hello-join"), 1);
    sender.received(messageFor("error"), 1);
    expect(thrownBy(() => sender.sent(messageFor("open")))).toBeInstanceOf(InvariantError);
    const receiver = joined("receiver", "greeted");
    receiver.sent(messageFor("error"), 1);
    receiver.received(messageFor("open"));
    expect(receiver.state).toBe("opening");
  });

  test("numbers beyond the maximum are a wrong call", () => {
    const rules = createSessionRules("sender");
    for (const connection of [-1, 0.5, limits.connectionsMax]) {
      expect(thrownBy(() => rules.sent(messageFor("hello"), connection))).toBeInstanceOf(InvariantError);
    }
  });
});

/**
 * Two ends, three connections, messages that cross at will. Each end says whatever its rules let it, and keeps to the
 * two promises that the table cannot express: after a commit, repeats and another commit only when a repeat was asked
 * for; durable only when every frame counted is there and no repeat is open. Then nothing that arrives may be a
 * violation.
 */
class Crossing {
  readonly rules = { sender: createSessionRules("sender"), receiver: createSessionRules("receiver") };
  readonly #wires = new Map<string, { message: Message; asked: number }[]>();
  readonly #sent: FrameCounts = createFrameCounts(3);
  readonly #arrived: FrameCounts = createFrameCounts(3);
  #repeatAllowed = true;
  #repeatsAsked = 0;
  #repeatsSeen = 0;
  #commit: { frames: readonly number[]; asked: number } | undefined;

  step(choice: number, connection: number, event: SessionEvent, speaker: SessionRole): void {
    if (choice % 2 === 0) this.deliver(speaker, connection);
    else this.#trySend(speaker, connection, event);
  }

  drain(): void {
    for (const speaker of roles) {
      for (const connection of [1, 2, 0]) while (this.deliver(speaker, connection));
    }
  }

  deliver(speaker: SessionRole, connection: number): boolean {
    const item = this.#wires.get(`${speaker} ${connection}`)?.shift();
    if (item === undefined) return false;
    const { message, asked } = item;
    this.rules[speaker === "sender" ? "receiver" : "sender"].received(message, connection);
    if (message.type === "data" || message.type === "zero") this.#arrived.count(connection);
    if (message.type === "commit" || message.type === "pass") this.#commit = { frames: message.frames, asked };
    if (message.type === "ask-repeat") {
      this.#repeatsSeen++;
      this.#repeatAllowed = true;
    }
    return true;
  }

  #trySend(speaker: SessionRole, connection: number, event: SessionEvent): void {
    let message = messageFor(event);
    if (!this.#repeatAllowed && ["commit", "pass", "data-repeat", "zero-repeat"].includes(event)) return;
    if (message.type === "commit" || message.type === "pass") message = { ...message, frames: this.#sent.list() };
    if ((event === "durable" || event === "synced") && !this.#durableAllowed()) return;
    try {
      this.rules[speaker].sent(message, connection);
    } catch (error) {
      expect(error).toBeInstanceOf(InvariantError);
      return;
    }
    if (message.type === "data" || message.type === "zero") this.#sent.count(connection);
    if (event === "commit" || event === "pass") this.#repeatAllowed = false;
    if (event === "ask-repeat") this.#repeatsAsked++;
    const wire = this.#wires.get(`${speaker} ${connection}`) ?? [];
    wire.push({ message, asked: this.#repeatsSeen });
    this.#wires.set(`${speaker} ${connection}`, wire);
  }

  #durableAllowed(): boolean {
    const commit = this.#commit;
    if (commit === undefined || commit.asked !== this.#repeatsAsked) return false;
    return this.#arrived.compare(commit.frames) === "equal";
  }
}

describe("messages that cross", () => {
  // Joins and the way to `durable` come up often enough by weight.
  const event = fc.oneof(
    { weight: 3, arbitrary: fc.constantFrom<SessionEvent>("hello", "hello-join", "open", "opened") },
    { weight: 3, arbitrary: fc.constantFrom<SessionEvent>("data", "commit", "ask-repeat", "data-repeat", "durable") },
    { weight: 2, arbitrary: fc.constantFrom(...sessionEvents.filter((e) => e !== "error" && e !== "bye")) },
  );
  const ending = fc.oneof(
    { weight: 40, arbitrary: event },
    { weight: 1, arbitrary: fc.constantFrom(...sessionEvents) },
  );
  const connection = fc.oneof(
    { weight: 3, arbitrary: fc.constant(0) },
    { weight: 1, arbitrary: fc.constantFrom(1, 2) },
  );
  const reached = new Set<SessionState>();

  test("are never a violation at either end, and both ends meet in the same state", () => {
    const steps = fc.array(fc.tuple(fc.nat(9), connection, ending, fc.constantFrom(...roles)), {
      minLength: 50,
      maxLength: 400,
      size: "max",
    });
    fc.assert(
      fc.property(steps, (list) => {
        const crossing = new Crossing();
        for (const [choice, number, what, speaker] of list) {
          crossing.step(choice, number, what, speaker);
          reached.add(crossing.rules.sender.state);
          reached.add(crossing.rules.receiver.state);
        }
        crossing.drain();
        expect(crossing.rules.sender.state).toBe(crossing.rules.receiver.state);
        for (const number of [1, 2]) {
          expect(crossing.rules.sender.joinState(number)).toBe(crossing.rules.receiver.joinState(number));
        }
      }),
      { numRuns: 400 },
    );
  });

  test("the walk above saw every state", () => {
    expect([...reached].sort()).toEqual([...states].sort());
  });
});
