// An exported explorer: the answers that Python stored take the place of the kernel.

const listeners = {}, answers = STORE.answers;
const values = { spec: STORE.spec, view: STORE.view, got: {}, data: null };
let asked = null;

function viewOf(text) {
  return new DataView(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
}

const model = {
  get: (name) => values[name],
  set: (name, value) => {
    values[name] = value;
    if (name === "ask") asked = value;
  },
  on: (name, listener) => (listeners[name] ??= []).push(listener),
  save_changes: () => {
    const { number, key } = asked;
    const found = key === null ? [{}, ""] : answers[key];
    const lacks = { error: "This page does not hold that: it needs the notebook's kernel." };
    values.got = { ...(found ? found[0] : lacks), number, key };
    values.data = viewOf(found ? found[1] : "");
    setTimeout(() => (listeners["change:got"] ?? []).forEach((listener) => listener()), 0);
  },
};

explorer.render({ model, el: document.getElementById("explorer") });
