/**
 * What may be said when: the session as a table of states, who speaks and what. docs/protocol.md, "Session", has the
 * same table (a test compares them). Both ends use it: what we are about to send and what arrived are judged alike. The
 * rows are such that messages which cross on the way are legal at both ends.
 */
import { InvariantError, invariant, ReplicationError } from "../base/errors.ts";
import { limits } from "../base/limits.ts";
import type { SessionRole } from "./credit.ts";
import type { Message, MessageType } from "./messages.ts";

/** What the table tells apart: message types, and `hello`, `data`, `zero` in their second role. */
export type SessionEvent = MessageType | "hello-join" | "data-repeat" | "zero-repeat";

export const sessionEvents: readonly SessionEvent[] = [
  "hello",
  "hello-join",
  "open",
  "opened",
  "ask-pages",
  "pages",
  "ask-blocks",
  "blocks",
  "ask-parts",
  "parts",
  "data",
  "data-repeat",
  "zero",
  "zero-repeat",
  "grant",
  "ask-repeat",
  "commit",
  "durable",
  "pass",
  "synced",
  "heartbeat",
  "error",
  "bye",
];

/** States of the first connection, which is the session's. */
export type SessionState =
  | "new"
  | "greeting"
  | "greeted"
  | "opening"
  | "opened"
  | "committing"
  | "settled"
  | "sender-left"
  | "receiver-left"
  | "ended";

/** States of a further connection. */
export type JoinState = "new" | "joining" | "joined" | "sender-left" | "receiver-left" | "ended";

type Row<State> = Readonly<Record<SessionRole, Readonly<Partial<Record<SessionEvent, State>>>>>;

function stay<State extends string>(
  state: State,
  ...events: readonly SessionEvent[]
): Partial<Record<SessionEvent, State>> {
  return Object.fromEntries(events.map((event) => [event, state])) as Partial<Record<SessionEvent, State>>;
}

const senderEnds = { error: "sender-left", bye: "sender-left" } as const;
const receiverEnds = { error: "receiver-left", bye: "receiver-left" } as const;
const bothEnd = { error: "ended", bye: "ended" } as const;
const asks = ["ask-pages", "ask-blocks", "ask-parts"] as const;
const answers = ["pages", "blocks", "parts"] as const;
const repeats = ["data-repeat", "zero-repeat"] as const;

/** One side has left: what the other sent before it knew passes, until it leaves too. */
function leaving(
  inFlight: Readonly<Record<SessionRole, readonly SessionEvent[]>>,
): Readonly<Record<"sender-left" | "receiver-left" | "ended", Row<"sender-left" | "receiver-left" | "ended">>> {
  return {
    "sender-left": { sender: {}, receiver: { ...stay("sender-left", ...inFlight.receiver), ...bothEnd } },
    "receiver-left": { sender: { ...stay("receiver-left", ...inFlight.sender), ...bothEnd }, receiver: {} },
    ended: { sender: {}, receiver: {} },
  };
}

export const sessionTable: Readonly<Record<SessionState, Row<SessionState>>> = {
  new: {
    sender: { hello: "greeting" },
    receiver: { error: "receiver-left" },
  },
  greeting: {
    sender: { error: "sender-left" },
    receiver: { hello: "greeted", error: "receiver-left" },
  },
  greeted: {
    sender: { open: "opening", ...stay("greeted", "heartbeat"), ...senderEnds },
    receiver: { ...stay("greeted", "heartbeat"), ...receiverEnds },
  },
  opening: {
    sender: { ...stay("opening", "heartbeat"), ...senderEnds },
    receiver: { opened: "opened", ...stay("opening", "heartbeat"), ...receiverEnds },
  },
  opened: {
    sender: {
      ...stay("opened", ...asks, "data", "zero", ...repeats, "heartbeat"),
      commit: "committing",
      pass: "committing",
      ...senderEnds,
    },
    receiver: { ...stay("opened", ...answers, "grant", "ask-repeat", "heartbeat"), ...receiverEnds },
  },
  committing: {
    sender: { ...stay("committing", ...repeats, "commit", "pass", "heartbeat"), ...senderEnds },
    receiver: {
      ...stay("committing", ...answers, "grant", "ask-repeat", "heartbeat"),
      durable: "settled",
      synced: "settled",
      ...receiverEnds,
    },
  },
  settled: {
    sender: { ...stay("settled", "heartbeat"), ...senderEnds },
    receiver: { ...stay("settled", "heartbeat"), ...receiverEnds },
  },
  ...leaving({
    sender: ["hello", "open", ...asks, "data", "zero", ...repeats, "commit", "pass", "heartbeat"],
    receiver: ["hello", "opened", ...answers, "grant", "ask-repeat", "durable", "synced", "heartbeat"],
  }),
};

export const joinTable: Readonly<Record<JoinState, Row<JoinState>>> = {
  new: {
    sender: { "hello-join": "joining" },
    receiver: { error: "receiver-left" },
  },
  joining: {
    sender: { error: "sender-left" },
    receiver: { hello: "joined", error: "receiver-left" },
  },
  joined: {
    sender: { ...stay("joined", "data", "zero", ...repeats, "heartbeat"), ...senderEnds },
    receiver: { ...stay("joined", "heartbeat"), ...receiverEnds },
  },
  ...leaving({
    sender: ["hello-join", "data", "zero", ...repeats, "heartbeat"],
    receiver: ["hello", "heartbeat"],
  }),
};

export function eventOf(message: Message): SessionEvent {
  if (message.type === "hello") return message.join === undefined ? "hello" : "hello-join";
  if (message.type === "data") return message.repeat ? "data-repeat" : "data";
  if (message.type === "zero") return message.repeat ? "zero-repeat" : "zero";
  return message.type;
}

/** The rules of one session at one end, over all its connections. */
export interface SessionRules {
  readonly state: SessionState;
  /** Of connection `connection`, from 1. */
  joinState(connection: number): JoinState;
  /** A message is about to be sent. Throws `InvariantError` when that is not allowed now. */
  sent(message: Message, connection?: number): void;
  /** A message arrived. Throws `protocol-violation` naming message and state when that is not allowed now. */
  received(message: Message, connection?: number): void;
}

export function createSessionRules(role: SessionRole): SessionRules {
  const peer: SessionRole = role === "sender" ? "receiver" : "sender";
  const joins = new Map<number, JoinState>();
  let state: SessionState = "new";
  const joinState = (connection: number): JoinState => joins.get(connection) ?? "new";

  // A connection that was refused ends the session, but at the receiver an `open` may cross with the refusal.
  const mayOpen = (own: boolean): boolean =>
    [...joins.values()].every((join) => join === "joined" || (!own && join !== "joining"));

  const step = (speaker: SessionRole, message: Message, connection: number): string | undefined => {
    const event = eventOf(message);
    if (connection === 0) {
      const next = sessionTable[state][speaker][event];
      if (next === undefined) return `${nameOfEvent(event)} in state ${state}`;
      if (event === "open" && !mayOpen(speaker === role)) return "open before every join was answered";
      state = next;
      return undefined;
    }
    const before = joinState(connection);
    const next = joinTable[before][speaker][event];
    if (next === undefined) return `${nameOfEvent(event)} in state ${before} of connection ${connection}`;
    if (!fitsSession(event, state, speaker === role)) {
      return `${nameOfEvent(event)} on connection ${connection} while the session is in state ${state}`;
    }
    joins.set(connection, next);
    return undefined;
  };

  return {
    get state() {
      return state;
    },
    joinState,
    sent(message, connection = 0) {
      const problem = step(role, message, checked(connection));
      if (problem !== undefined) throw new InvariantError(`a ${role} sends no ${problem}`);
    },
    received(message, connection = 0) {
      const problem = step(peer, message, checked(connection));
      if (problem === undefined) return;
      throw new ReplicationError(
        "protocol-violation",
        `the ${peer} sent ${problem}: the two ends disagree about the session`,
        {
          details: { message: message.type, state },
        },
      );
    },
  };
}

function checked(connection: number): number {
  invariant(
    Number.isInteger(connection) && connection >= 0 && connection < limits.connectionsMax,
    "connections are numbered from 0 to connectionsMax - 1",
  );
  return connection;
}

/**
 * What a further connection may carry also depends on the session. Frames of different connections overtake each other,
 * so what arrives is judged by what the peer may have sent last: a first sending of data may arrive after `commit`, but
 * is not sent after it; and once the session is over, what arrives on a connection still open is let pass.
 */
function fitsSession(event: SessionEvent, session: SessionState, own: boolean): boolean {
  if (!own && (session === "sender-left" || session === "receiver-left" || session === "ended")) return true;
  if (event === "hello-join") return session === "greeted";
  if (event === "data" || event === "zero") return session === "opened" || (!own && session === "committing");
  if (event === "data-repeat" || event === "zero-repeat") return session === "opened" || session === "committing";
  return true;
}

/** The event as messages and the document write it. */
export function nameOfEvent(event: SessionEvent): string {
  return event.replace(/^hello-join$/, "hello (join)").replace(/^(data|zero)-repeat$/, "$1 (repeat)");
}
