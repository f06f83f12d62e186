// What is asked of the server: answers as JSON, or as a stream of events. Addresses are relative,
// so that the page also works behind a proxy, in a folder.

let key = sessionStorage.getItem("key");

async function send(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  const used = key;
  if (key) headers.Authorization = `Bearer ${key}`;
  const answer = await fetch(path, body === undefined ? { headers, signal }
    : { method: "POST", headers, signal, body: JSON.stringify(body) });
  if (answer.status === 401) {
    if (key === used) await askForKey();
    return send(path, body, signal);
  }
  if (key) sessionStorage.setItem("key", key);
  if (!answer.ok) {
    const told = await answer.json().catch(() => null);
    throw new Error(told?.error?.message ?? `${answer.status} ${answer.statusText}`);
  }
  return answer;
}

export async function ask(path, body, signal) {
  return (await send(path, body, signal)).json();
}

// The objects of a stream, as they come.
export async function* stream(path, body, signal) {
  const answer = await send(path, { ...body, stream: true }, signal);
  let rest = "";
  for await (const part of textOf(answer.body.getReader())) {
    const lines = (rest + part).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: {")) continue;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

async function* textOf(reader) {
  const decoder = new TextDecoder();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield decoder.decode(value, { stream: true });
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

let asking = null;  // all requests that are refused at once wait for one key

function askForKey() {
  asking ??= new Promise((resolve, reject) => {
    const dialog = document.getElementById("key");
    if (key) dialog.querySelector("h2").textContent = "That key is not the server’s";
    dialog.addEventListener("close", () => {
      asking = null;
      if (dialog.returnValue !== "go") return reject(new Error("this server asks for a key"));
      key = dialog.querySelector("input").value;
      resolve();
    }, { once: true });
    dialog.returnValue = "";
    dialog.showModal();
  });
  return asking;
}
