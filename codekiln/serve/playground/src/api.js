// Requests to the server: OpenAI's completions API with streaming, the list of models, and /health.

const ADVICE = {
  0: "Start the server again. This page reconnects by itself.",
  400: "Change the setting or the text that the message names.",
  401: "Enter the API key in the settings.",
  403: "Enter another API key in the settings.",
  404: "Choose a model of this server in the settings.",
  413: "Delete some text, or start the server with a larger --max-body-bytes.",
  429: "Wait a moment, then try again.",
  503: "The server is busy. Wait a moment, then try again.",
};

/** A request without an answer. `status` is the HTTP status, or 0 if the connection failed. */
export class RequestError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }

  /** What failed, and what the user can do. */
  get report() {
    const kind = this.status >= 500 ? "Try again. The output of the server has the reason." : "Try again.";
    const code = this.status ? ` (HTTP ${this.status})` : "";
    return `Error${code}: ${this.message.replace(/\.$/, "")}. ${ADVICE[this.status] ?? kind}`;
  }
}

/** The names of the models that the server has. Throws RequestError. */
export async function modelNames(apiKey) {
  const response = await send("/v1/models", { apiKey });
  return (await response.json()).data.map((model) => model.id);
}

/** Whether the server answers and is ready. */
export async function isHealthy() {
  try {
    return (await fetch("/health", { cache: "no-store" })).ok;
  } catch {
    return false;
  }
}

/**
 * Streams the completions of a request and calls `onChoice` with each piece: {index, text, logprobs, finish_reason}.
 * The last piece of a completion also has its provenance.
 *
 * Returns {firstMs, totalMs, tokens}: milliseconds to the first text and to the end, and the number of tokens. Throws
 * RequestError, or AbortError if `signal` was aborted.
 */
export async function streamCompletions(body, { apiKey, signal, onChoice }) {
  const start = performance.now();
  const measured = { firstMs: null, totalMs: 0, tokens: 0 };
  const response = await send("/v1/completions", {
    apiKey,
    signal,
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, provenance: true, stream: true, stream_options: { include_usage: true } }),
  });
  for await (const event of serverSentEvents(response)) {
    if (event.error) throw new RequestError(500, event.error.message ?? "the server failed");
    measured.tokens = event.usage?.completion_tokens ?? measured.tokens;
    for (const choice of event.choices) {
      if (choice.text) measured.firstMs ??= performance.now() - start;
      onChoice(choice);
    }
  }
  measured.totalMs = performance.now() - start;
  return measured;
}

async function send(path, { apiKey, headers = {}, ...options }) {
  let response;
  try {
    response = await fetch(path, {
      ...options,
      cache: "no-store",
      headers: apiKey ? { ...headers, Authorization: `Bearer ${apiKey}` } : headers,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestError(0, "the server does not answer");
  }
  if (!response.ok) throw new RequestError(response.status, await messageOf(response));
  return response;
}

async function messageOf(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error.message ?? response.statusText;
  } catch {
    return text.slice(0, 300) || response.statusText || "no reason was given";
  }
}

/** The JSON records of a stream, up to its end mark. Throws RequestError if the stream ends without one. */
async function* serverSentEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const lines = (held + value).split("\n");
      held = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice("data:".length).trim();
        if (data === "[DONE]") return;
        yield JSON.parse(data);
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof SyntaxError) throw error;
    throw new RequestError(0, "the connection to the server was lost");
  } finally {
    reader.cancel().catch(() => {}); // the stream may have failed already
  }
  throw new RequestError(0, "the server ended its answer early");
}
