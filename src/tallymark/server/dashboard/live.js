// The connection to the server: requests that say what failed, and a stream that comes back by itself.

const API = new URL("api/v1/", document.baseURI);
const FIRST_RETRY_MS = 500;
const LAST_RETRY_MS = 10_000;
// The server sends a heartbeat every 15 s: a line that is quiet for longer than two of them is dead.
const SILENCE_MS = 40_000;

/** What the server said was wrong (problem details), or that it could not be reached (status 0). */
export class Problem extends Error {
  constructor(title, detail, status) {
    super(detail ? `${title}: ${detail}` : title);
    Object.assign(this, { title, detail, status });
  }

  static async of(response) {
    try {
      const { title, detail } = await response.json();
      return new Problem(String(title ?? `HTTP ${response.status}`), detail ? String(detail) : "", response.status);
    } catch {
      return new Problem(`The server answered ${response.status}`, response.statusText, response.status);
    }
  }
}

function address(path, parameters) {
  const url = new URL(path, API);
  for (const [name, given] of Object.entries(parameters)) {
    for (const each of [given].flat()) if (each !== null && each !== undefined) url.searchParams.append(name, each);
  }
  return url;
}

async function request(path, parameters, options) {
  let response;
  try {
    response = await fetch(address(path, parameters), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server does not answer", "", 0);
  }
  if (!response.ok) throw await Problem.of(response);
  return response;
}

/** A JSON answer; throws Problem. */
export async function get(path, parameters, signal) {
  return (await request(path, parameters, { signal })).json();
}

/** The events of a server-sent event stream as [name, data] pairs. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      let name = "message";
      const data = [];
      for (const line of block.split("\n")) {
        if (line.startsWith("event: ")) name = line.slice(7);
        else if (line.startsWith("data: ")) data.push(line.slice(6));
      }
      yield [name, data.join("\n")];
    }
  }
}

/** Watches one view at a time; reconnects with growing pauses; rests while the page is hidden. */
export class Live {
  #handlers;
  #parameters = null;
  #abort = null;
  #wake = () => {};

  /** Handlers: snapshot(figures), problem(Problem), connection("connecting" | "live" | "lost"). */
  constructor(handlers) {
    this.#handlers = handlers;
    document.addEventListener("visibilitychange", () => this.#restart());
    addEventListener("online", () => this.#wake());
  }

  watch(parameters) {
    this.#parameters = parameters;
    this.#restart();
  }

  stop() {
    this.#parameters = null;
    this.#restart();
  }

  #restart() {
    this.#abort?.abort();
    this.#abort = null;
    this.#wake();
    if (this.#parameters === null || document.hidden) return;
    this.#abort = new AbortController();
    this.#run(this.#parameters, this.#abort.signal);
  }

  async #run(parameters, signal) {
    let pause = FIRST_RETRY_MS;
    this.#handlers.connection("connecting");
    while (!signal.aborted) {
      try {
        await this.#listen(parameters, signal, () => { pause = FIRST_RETRY_MS; });
      } catch (error) {
        if (signal.aborted) return;
        const problem = error instanceof Problem ? error : new Problem("The connection to the server was lost", "", 0);
        this.#handlers.connection("lost");
        this.#handlers.problem(problem);
        if (problem.status >= 400 && problem.status < 500) return; // asking again would not help
      }
      if (signal.aborted) return;
      await this.#sleep(pause * (0.75 + Math.random() / 2));
      pause = Math.min(pause * 2, LAST_RETRY_MS);
    }
  }

  async #listen(parameters, signal, heard) {
    const line = new AbortController();
    const both = AbortSignal.any([signal, line.signal]);
    let timer = setTimeout(() => line.abort(), SILENCE_MS);
    try {
      const response = await request("stream", parameters, { signal: both, cache: "no-store" });
      for await (const [name, data] of events(response.body)) {
        if (signal.aborted) return;
        clearTimeout(timer);
        timer = setTimeout(() => line.abort(), SILENCE_MS);
        heard();
        if (name === "snapshot") {
          this.#handlers.connection("live");
          this.#handlers.snapshot(JSON.parse(data));
        } else if (name === "problem") {
          const { title, detail } = JSON.parse(data);
          this.#handlers.problem(new Problem(title, detail, 500));
        }
      }
      throw new Problem("The server closed the connection", "", 0);
    } finally {
      clearTimeout(timer);
      line.abort();
    }
  }

  #sleep(milliseconds) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, milliseconds);
      this.#wake = () => { clearTimeout(timer); resolve(); };
    });
  }
}
