// The status line: the request in progress, its times, or what failed.

export class Status {
  #latest = null;

  /** `onLost` is called if a request failed because the server does not answer. */
  constructor(output, onLost) {
    this.output = output;
    this.onLost = onLost;
  }

  /** Shows that work began. Returns a job to report to; it is silent as soon as something else is shown. */
  start(text) {
    const job = {
      progress: (now) => this.#latest === job && this.#write("work", now),
      note: (last) => this.#latest === job && this.#write("note", last),
      done: (measured) => this.#latest === job && this.#write("done", timesOf(measured)),
      fail: (error) => {
        if (error.status === 0) this.onLost();
        if (this.#latest !== job) return;
        if (error.name === "AbortError") this.#write("note", "");
        else this.#write("error", error.report ?? `Error in this page: ${error.message}`);
      },
    };
    this.#latest = job;
    this.#write("work", text);
    return job;
  }

  note(text) {
    this.#latest = null;
    this.#write("note", text);
  }

  #write(kind, text) {
    this.output.className = kind;
    this.output.textContent = text;
  }
}

function timesOf({ firstMs, totalMs, tokens }) {
  const first = firstMs === null ? "no text" : `first text ${Math.round(firstMs)} ms`;
  return `${first} · total ${Math.round(totalMs)} ms · ${tokenCount(tokens)}`;
}

export function tokenCount(n) {
  return `${n} ${n === 1 ? "token" : "tokens"}`;
}
