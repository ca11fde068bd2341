// The page of the sandbox server. It uses the same API as every other client.
'use strict';

const MAX_SHOWN = 1 << 20;
const POLL_INTERVAL_MS = 3000;
const TERMINAL_THEME = { background: '#11151a', foreground: '#dfe4ea', cursor: '#dfe4ea' };

const $ = (id) => document.getElementById(id);
let token = sessionStorage.getItem('token');
let sessions = [];
let selected = null;
let terminal = null;
let running = null;

// The API.

class ApiError extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

async function call(method, path, options = {}) {
  const headers = { ...options.headers, authorization: `Bearer ${token}` };
  const response = await fetch(path, { ...options, method, headers, cache: 'no-store' });
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new ApiError(response.status, problem.detail || problem.title || `The server answered ${response.status}.`);
}

function post(path, body, options) {
  const headers = { 'content-type': 'application/json' };
  return call('POST', path, { ...options, headers, body: JSON.stringify(body) });
}

const sessionPath = (rest = '') => `sessions/${encodeURIComponent(selected)}${rest}`;
const filePath = (path) => sessionPath(`/files?path=${encodeURIComponent(path)}`);

// Errors and states.

function fail(error) {
  const isOffline = error instanceof TypeError && error.message === 'Failed to fetch';
  $('error').textContent = isOffline ? 'The server does not answer.' : error.message;
  if (error.status === 401) signOut();
}

/// Runs an action of a control. The control ignores further clicks until the action has ended.
async function act(control, action) {
  if (control.ariaDisabled === 'true') return;
  control.ariaDisabled = 'true';
  $('error').textContent = '';
  try {
    await action();
  } catch (error) {
    fail(error);
  } finally {
    control.ariaDisabled = null;
  }
}

function onClick(id, action) {
  $(id).addEventListener('click', () => act($(id), action));
}

function onSubmit(id, action) {
  $(id).addEventListener('submit', (event) => {
    event.preventDefault();
    act($(`${id}-button`), action);
  });
}

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Signing in.

async function signIn(entered) {
  token = entered;
  await loadSessions();
  sessionStorage.setItem('token', token);
  showSignedIn(true);
  $('token').value = '';
  $('image').focus();
}

function signOut() {
  token = null;
  sessionStorage.removeItem('token');
  running?.abort();
  select(null);
  sessions = [];
  drawSessions();
  showSignedIn(false);
  $('token').focus();
}

function showSignedIn(isSignedIn) {
  $('sign-in').hidden = isSignedIn;
  $('signed-in').hidden = !isSignedIn;
  $('sign-out').hidden = !isSignedIn;
}

// The list of sessions.

async function loadSessions() {
  const response = await call('GET', 'sessions');
  ({ sessions } = await response.json());
  drawSessions();
}

/// Keeps the list up to date.
async function poll() {
  if (token && !$('signed-in').hidden && !document.hidden) {
    try {
      await loadSessions();
      setText($('connection'), '');
    } catch (error) {
      if (error.status === 401) fail(error);
      else setText($('connection'), `Not up to date: ${error.status ? error.message : 'the server does not answer.'}`);
    }
  }
  setTimeout(poll, POLL_INTERVAL_MS);
}

function age(time) {
  const seconds = Math.max(0, Math.round((Date.now() - Date.parse(time)) / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}

const title = (session) => session.image || 'local process';

/// Updates the rows in place, so that the focus stays where it is.
function drawSessions() {
  const list = $('sessions');
  const rows = new Map([...list.children].map((row) => [row.dataset.id, row]));
  sessions.forEach((session, index) => {
    const row = rows.get(session.id) || newRow(session);
    rows.delete(session.id);
    if (list.children[index] !== row) list.insertBefore(row, list.children[index] || null);
    drawRow(row, session);
  });
  for (const row of rows.values()) row.remove();
  $('no-sessions').hidden = sessions.length > 0;
  drawFacts();
}

function newRow({ id }) {
  const row = element('li');
  row.dataset.id = id;
  const pick = element('button', undefined, 'pick');
  const stop = element('button', 'Stop', 'stop');
  pick.type = stop.type = 'button';
  pick.addEventListener('click', () => act(pick, () => select(id)));
  stop.addEventListener('click', () => {
    act(stop, () => stopSession(id));
    pick.focus();
  });
  const facts = element('div');
  facts.append(element('span'), element('span'), element('span'), element('span', id));
  row.append(pick, stop, facts);
  return row;
}

function drawRow(row, session) {
  const [pick, stop, facts] = row.children;
  const [state, created, verdict] = facts.children;
  setText(pick, title(session));
  pick.ariaCurrent = session.id === selected ? 'true' : null;
  pick.ariaLabel = `${title(session)}, ${session.state}, ${session.id}`;
  row.classList.toggle('on', session.id === selected);
  stop.hidden = session.state === 'ended';
  stop.ariaLabel = `Stop ${session.id}`;
  state.className = session.state;
  setText(state, session.state);
  setText(created, age(session.created_at));
  verdict.className = session.verdict || '';
  setText(verdict, session.verdict || '');
}

async function createSession() {
  const image = $('image').value.trim();
  const spec = { network: $('network').checked };
  if (image) spec.image = image;
  const created = await (await post('sessions', spec)).json();
  await loadSessions();
  await select(created.id);
}

async function stopSession(id) {
  await call('DELETE', `sessions/${encodeURIComponent(id)}`);
  await loadSessions();
}

// The selected session.

async function select(id) {
  if (selected === id) return;
  running?.abort();
  closeTerminal();
  selected = id;
  for (const part of ['output', 'audit', 'verified']) $(part).hidden = true;
  for (const part of ['exec-state', 'file-state', 'audit-state', 'terminal-state']) $(part).textContent = '';
  drawSessions();
  if (id) await loadExecs();
}

function drawFacts() {
  const session = sessions.find(({ id }) => id === selected);
  $('session').hidden = !session;
  if (!session) return;
  setText($('session-title'), `${title(session)} ${session.id}`);
  const facts = {
    state: session.state,
    verdict: session.verdict,
    ending: session.ending,
    code: session.code,
    stopped: session.stopped,
    network: session.network ? 'yes' : 'no',
    command: session.cmd?.join(' '),
  };
  const pairs = Object.entries(facts).filter(([, value]) => value !== null && value !== undefined && value !== '');
  const text = JSON.stringify(pairs);
  if ($('facts').dataset.shown === text) return;
  $('facts').dataset.shown = text;
  $('facts').replaceChildren(...pairs.map(([name, value]) => {
    const pair = element('div');
    pair.append(element('dt', name), element('dd', String(value)));
    return pair;
  }));
}

async function loadExecs() {
  const id = selected;
  if (!id) return;
  const { execs } = await (await call('GET', sessionPath('/execs'))).json();
  if (id !== selected) return;
  const before = $('audit-of').value;
  const options = [new Option('the session', '')];
  for (const exec of execs) options.push(new Option(`${exec.id}: ${exec.cmd.join(' ').slice(0, 60)}`, exec.id));
  $('audit-of').replaceChildren(...options);
  $('audit-of').value = before;
  if ($('audit-of').selectedIndex < 0) $('audit-of').value = '';
}

// The terminal.

function openTerminal() {
  closeTerminal();
  $('terminal').hidden = $('close-terminal').hidden = $('terminal-hint').hidden = false;
  const screen = new Terminal({
    rendererType: 'dom', fontSize: 13, theme: TERMINAL_THEME, screenReaderMode: $('screen-reader').checked,
    fontFamily: getComputedStyle($('audit')).fontFamily,
  });
  const fit = new FitAddon.FitAddon();
  screen.loadAddon(fit);
  screen.open($('terminal'));
  // The text area inside takes the focus.
  screen.element.removeAttribute('tabindex');
  screen.textarea.setAttribute('aria-describedby', 'terminal-hint');
  screen.attachCustomKeyEventHandler(staysInTerminal);
  fit.fit();
  const observer = new ResizeObserver(() => $('terminal').clientWidth && fit.fit());
  observer.observe($('terminal'));
  terminal = { screen, observer, exit: null, opened: false };
  connect(terminal);
  screen.focus();
}

function staysInTerminal(event) {
  if (event.key !== 'Escape' || !event.shiftKey) return true;
  if (event.type === 'keydown') $('close-terminal').focus();
  return false;
}

function connect(opened) {
  const { screen } = opened;
  const url = new URL(sessionPath('/terminal'), location.href);
  url.protocol = url.protocol.replace('http', 'ws');
  url.search = new URLSearchParams({ columns: screen.cols, rows: screen.rows });
  const socket = new WebSocket(url, ['moat.terminal.v1', `bearer.${token}`]);
  socket.binaryType = 'arraybuffer';
  opened.socket = socket;
  const send = (message) => socket.readyState === WebSocket.OPEN && socket.send(message);
  const resize = () => send(JSON.stringify({ resize: { columns: screen.cols, rows: screen.rows } }));
  screen.onData((text) => {
    // The server takes messages of up to 1 MiB.
    const bytes = new TextEncoder().encode(text);
    for (let at = 0; at < bytes.length; at += 65536) send(bytes.subarray(at, at + 65536));
  });
  screen.onResize(resize);
  socket.onopen = () => {
    opened.opened = true;
    $('terminal-state').textContent = 'Connected.';
    resize();
  };
  socket.onmessage = ({ data }) => receive(opened, data);
  socket.onclose = () => terminal === opened && disconnected(opened).catch(fail);
  $('terminal-state').textContent = 'Connecting.';
}

function receive(opened, data) {
  if (typeof data === 'string') {
    opened.exit = JSON.parse(data);
    return;
  }
  try {
    opened.screen.write(new Uint8Array(data));
  } catch (error) {
    // The emulator refuses more than 50 MB that it has not drawn.
    opened.socket.close();
    fail(error);
  }
}

async function disconnected(ended) {
  const { screen, exit, opened } = ended;
  screen.setOption('disableStdin', true);
  let state = 'The connection is lost. A new terminal starts a new shell.';
  if (exit) state = describeEnd(exit.exit || exit.error || exit);
  else if (!opened) state = `The terminal cannot be opened: ${await refusal()}`;
  if (terminal !== ended) return;
  $('terminal-state').textContent = state;
  $('open-terminal').textContent = exit ? 'Open a terminal' : 'Connect again';
  await loadExecs();
}

/// The reason for which the server refused a terminal. A browser does not tell the page.
async function refusal() {
  try {
    await call('GET', sessionPath('/terminal'));
  } catch (error) {
    if (!error.status) return 'the server does not answer.';
    // Without an upgrade to a WebSocket, the request itself is bad.
    if (error.status !== 400) return error.message;
  }
  return 'perhaps too many commands are running.';
}

function closeTerminal() {
  if (!terminal) return;
  const { screen, observer, socket } = terminal;
  terminal = null;
  observer.disconnect();
  socket.close();
  screen.dispose();
  $('terminal').replaceChildren();
  $('terminal').hidden = $('close-terminal').hidden = $('terminal-hint').hidden = true;
  $('terminal-state').textContent = '';
  $('open-terminal').textContent = 'Open a terminal';
}

/// A sentence about the end of a command.
function describeEnd({ code, stopped, ending, verdict, detail }) {
  const parts = [];
  if (detail) parts.push(detail);
  if (stopped) parts.push(`stopped (${stopped})`);
  if (Number.isInteger(code)) parts.push(`exited with code ${code}`);
  if (!parts.length) parts.push(ending || 'ended');
  if (verdict) parts.push(`audit ${verdict}`);
  const sentence = parts.join(', ');
  return `${sentence[0].toUpperCase()}${sentence.slice(1)}.`;
}

// Commands.

async function runCommand() {
  const id = selected;
  const abort = running = new AbortController();
  $('cancel-button').hidden = $('output').hidden = false;
  $('stdout').textContent = $('stderr').textContent = '';
  $('exec-state').textContent = 'Running.';
  let state = '';
  try {
    const cmd = ['/bin/sh', '-c', $('command').value];
    const response = await post(sessionPath('/exec'), { cmd }, { signal: abort.signal });
    state = await showEvents(response.body);
  } catch (error) {
    state = abort.signal.aborted ? 'Cancelled.' : '';
    if (!abort.signal.aborted) throw error;
  } finally {
    running = null;
    $('cancel-button').hidden = true;
    $('exec-state').textContent = selected === id ? state : '';
  }
  await loadExecs();
}

async function showEvents(body) {
  const streams = { stdout: new Output($('stdout')), stderr: new Output($('stderr')) };
  for await (const { event, data } of events(body)) {
    if (event === 'exit' || event === 'error') return describeEnd(data);
    streams[event]?.add(data);
  }
  return 'The connection is lost. The end of the command is not known.';
}

/// The start of a stream. Output is only ever a text node.
class Output {
  constructor(pre) {
    this.pre = pre;
    this.room = MAX_SHOWN;
    this.decoder = new TextDecoder();
  }

  add({ text, base64 }) {
    if (this.room <= 0) return;
    const added = text ?? this.decoder.decode(bytesOf(base64), { stream: true });
    this.pre.append(added.slice(0, this.room));
    this.room -= added.length;
    if (this.room <= 0) this.pre.append('\n(the rest is not shown)');
  }
}

const bytesOf = (base64) => Uint8Array.from(atob(base64), (one) => one.charCodeAt(0));

/// The events of a stream of server-sent events.
async function* events(body) {
  let buffer = '';
  for await (const text of chunks(body.pipeThrough(new TextDecoderStream()))) {
    const blocks = (buffer + text).split('\n\n');
    buffer = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split('\n').map((line) => line.split(/: ?(.*)/s)));
      if (fields.event) yield { event: fields.event, data: JSON.parse(fields.data) };
    }
  }
}

/// The chunks of a stream, which is cancelled if the caller leaves its loop.
async function* chunks(stream) {
  const reader = stream.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// Files.

async function upload() {
  const [file] = $('file').files;
  await call('PUT', filePath($('upload-path').value), { body: file });
  $('file-state').textContent = `Uploaded ${file.size} bytes to ${$('upload-path').value}.`;
}

async function download() {
  const path = $('download-path').value;
  const content = await (await call('GET', filePath(path))).blob();
  const link = element('a');
  link.href = URL.createObjectURL(content);
  link.download = path.split('/').pop() || 'file';
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  $('file-state').textContent = `Downloaded ${content.size} bytes.`;
}

// The audit.

async function showAudit() {
  const exec = $('audit-of').value;
  const path = exec ? `/execs/${encodeURIComponent(exec)}/audit` : '/audit';
  const { text, isWhole } = await head(await call('GET', sessionPath(path)), MAX_SHOWN);
  $('audit').hidden = false;
  $('audit').textContent = text;
  $('audit-state').textContent = isWhole ? `${text.split('\n').length - 1} records.` : 'The first 1 MiB.';
}

async function head(response, limit) {
  const decoder = new TextDecoder();
  let text = '';
  let bytes = 0;
  for await (const chunk of chunks(response.body)) {
    text += decoder.decode(chunk.subarray(0, limit - bytes), { stream: true });
    bytes += chunk.length;
    if (bytes > limit) return { text, isWhole: false };
  }
  return { text: text + decoder.decode(), isWhole: true };
}

async function verify() {
  const { verified, files } = await (await call('GET', sessionPath('/verify'))).json();
  $('verified').hidden = false;
  $('verified-caption').textContent = verified ? 'Verified' : 'Not verified';
  $('verified-files').replaceChildren(...files.map((file) => {
    const row = element('tr');
    row.append(
      element('td', file.file), element('td', file.damage || file.state, file.state),
      element('td', file.verdict || '', file.verdict), element('td', String(file.bytes)), element('td', String(file.gaps)),
    );
    return row;
  }));
}

onSubmit('sign-in', () => signIn($('token').value));
onSubmit('create', createSession);
onSubmit('exec', runCommand);
onSubmit('upload', upload);
onSubmit('download', download);
onClick('sign-out', signOut);
onClick('open-terminal', openTerminal);
onClick('close-terminal', () => {
  closeTerminal();
  $('open-terminal').focus();
});
onClick('audit-button', showAudit);
onClick('verify-button', verify);
$('cancel-button').addEventListener('click', () => running?.abort());
$('screen-reader').addEventListener('change', () => terminal?.screen.setOption('screenReaderMode', $('screen-reader').checked));
if (token) act($('sign-in-button'), () => signIn(token));
poll();
