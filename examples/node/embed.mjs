// A client of an embedpool in JavaScript, with vectors through the socket (no shared memory).
//
//     npm install && node embed.mjs [--raw] ENDPOINT [TEXT ...]
// Embeds the texts in one request; without texts, each line of standard input in a request of its own, all in one session.
// Prints each vector's norm and first values; --raw: the rows themselves. A router that dies is waited for, and asked again.
// docs/protocol.md says why each step is there.
import { createInterface } from "node:readline";
import { decode, encode } from "@msgpack/msgpack";
import { Dealer } from "zeromq";

const PING_AFTER_MS = 1000;
const GONE_AFTER_MS = 4000; // of silence: the router is taken for dead, and connected to anew
const ifBusy = (error) => { if (error.code !== "EAGAIN") throw error; };

class Client {
  #endpoint; #socket = null; #lastId = 0; #heardAt = 0; // performance.now(), milliseconds
  #router = null; // whom hello was said to
  #model = null; // of the session; null: none is open
  #fingerprint = null; // of the first welcome: vectors of two must not be mixed
  constructor(endpoint) { this.#endpoint = endpoint; }

  // Float32Arrays, one per text. Throws an Error for a request that was refused, or had no answer within timeoutMs.
  async embed(texts, timeoutMs = 10_000) {
    const deadline = performance.now() + timeoutMs;
    const request = { kind: "embed", id: ++this.#lastId, texts };
    if (this.#socket === null) this.#connect();
    this.#heardAt = performance.now(); // silence counts from when there is something to answer
    for (let asked = false; ; ) {
      const left = deadline - performance.now();
      if (left <= 0) throw new Error(`${this.#endpoint}: no answer in time`);
      if (this.#model !== null && !asked) {
        await this.#send({ ...request, budget_ms: left });
        asked = true;
      }
      const [message, payload] = await this.#receive(Math.min(left, PING_AFTER_MS));
      if (message === null) await this.#keepAlive();
      if (message?.kind === "vectors" && message.id === request.id) return this.#rows(message, payload, texts.length);
      if (message?.kind === "refused" && (message.id ?? request.id) === request.id) await this.#pause(message, left);
      if (message?.kind === "who") await this.#hello(message.router);
      if (message?.kind === "welcome") this.#welcomed(message);
      asked &&= message === null || ["pong", "vectors"].includes(message.kind); // all others: ask (again)
    }
  }

  close = () => this.#send({ kind: "bye" }).then(() => this.#socket?.close());

  #connect() {
    this.#socket?.close();
    // A probe at every connection makes a router that does not know us say `who`: a session begins, or begins again, with it.
    this.#socket = new Dealer({ probeRouter: true, immediate: true, linger: 100, sendTimeout: 0 });
    this.#socket.connect(this.#endpoint);
    [this.#router, this.#model, this.#heardAt] = [null, null, performance.now()];
  }

  async #send(message) {
    await this.#socket?.send(encode(message)).catch(ifBusy); // no connection: the next begins with `who`, and all is asked again
  }

  async #receive(patienceMs) {
    this.#socket.receiveTimeout = Math.ceil(patienceMs);
    const [frame, payload] = (await this.#socket.receive().catch(ifBusy)) ?? [];
    if (frame === undefined) return [null];
    this.#heardAt = performance.now();
    return [decode(frame), payload];
  }

  async #keepAlive() {
    if (performance.now() - this.#heardAt >= GONE_AFTER_MS) this.#connect();
    else await this.#send({ kind: "ping", id: 0 });
  }

  async #hello(router) {
    if (this.#model !== null || router !== this.#router) {
      [this.#router, this.#model] = [router, null]; // once per router: two questions may cross our answer
      await this.#send({ kind: "hello", version: 1, client: "examples/node" });
    }
  }

  #welcomed({ models }) {
    this.#fingerprint ??= models[0].fingerprint;
    if (models[0].fingerprint !== this.#fingerprint) throw new Error("the pool has another model now");
    this.#model = models[0];
  }

  // Nothing to ask again where the request is at fault, time is up, or it was hello that was refused.
  async #pause({ code, message, retryable, retry_after_ms: pauseMs = 0 }, leftMs) {
    if (!retryable || pauseMs >= leftMs || this.#model === null) throw new Error(`${code}: ${message}`);
    await new Promise((wake) => setTimeout(wake, pauseMs));
    this.#heardAt = performance.now();
  }

  #rows({ rows, dim }, payload, expected) {
    if (rows !== expected || payload?.length !== rows * dim * 4) throw new Error("vectors: not what was asked for");
    const { buffer } = new Uint8Array(payload); // a copy, aligned for Float32Array
    return Array.from({ length: rows }, (_, row) => new Float32Array(buffer, row * dim * 4, dim));
  }
}

function show(vectors, raw) {
  for (const vector of vectors) {
    const first = [...vector.slice(0, 4)].map((x) => x.toFixed(6)).join(" ");
    if (raw) process.stdout.write(new Uint8Array(vector.buffer, vector.byteOffset, vector.byteLength));
    else console.log(`norm ${Math.hypot(...vector).toFixed(6)}  ${first} …`);
  }
}

const words = process.argv.slice(2);
const raw = words[0] === "--raw" && words.shift() !== undefined;
const [endpoint, ...texts] = words;
const client = new Client(endpoint);
try {
  if (texts.length) show(await client.embed(texts), raw);
  else for await (const line of createInterface({ input: process.stdin })) show(await client.embed([line]), raw);
} catch (error) {
  console.error(`embed: ${error.message}`);
  process.exitCode = 1;
}
await client.close();
