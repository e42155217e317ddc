// What the server tells: JSON, and server-sent events in the answer to a POST.

/** A refusal, in the server's words. */
export class Refusal extends Error {
  constructor(status, detail) {
    super(detail?.message ?? `the server answered with status ${status}`);
    this.status = status;
    this.code = detail?.code ?? null;
  }
}

/** A JSON answer. */
export async function getJson(path, key) {
  const response = await fetch(path, { headers: authorization(key) });
  if (!response.ok) throw await refusal(response);
  return await response.json();
}

/** POST `body` and call `onEvent(name, data)` for each event; resolves at the stream's end. */
export async function postForEvents(path, body, key, signal, onEvent) {
  const response = await fetch(path, {
    method: "POST",
    headers: { "content-type": "application/json", ...authorization(key) },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok) throw await refusal(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) tell(event, onEvent);
  }
}

function tell(event, onEvent) {
  let name = "";
  let data = "";
  for (const line of event.split("\n")) {
    if (line.startsWith("event: ")) name = line.slice(7);
    if (line.startsWith("data: ")) data += line.slice(6);
  }
  const value = JSON.parse(data);
  if (name === "") throw new Refusal(200, value.error);
  onEvent(name, value);
}

function authorization(key) {
  return key ? { authorization: `Bearer ${key}` } : {};
}

async function refusal(response) {
  let detail = null;
  try {
    detail = (await response.json()).error;
  } catch {
    // Not from the coordinator itself; the status has to do.
  }
  return new Refusal(response.status, detail);
}
