// Hyper-V sockets for Node by hvsock's text protocol (docs/text.md). Each connection is a net.Socket.
//
//   const socket = await connect('parent', 'HV Socket Demo')
//   const listener = await listen('any', 'HV Socket Demo', (socket, peer) => socket.pipe(socket))

import { EventEmitter, once } from 'node:events'
import net from 'node:net'
import path from 'node:path'

const LONGEST_LINE = 4096

/** The sockets to try, in order: those beside the endpoint's. */
export function paths(env = process.env) {
  if (env.HVSOCK_ENDPOINT) return [path.join(path.dirname(env.HVSOCK_ENDPOINT), 'text')]
  if (env.HVSOCK_DIR) return [path.join(env.HVSOCK_DIR, 'text')]
  const own = env.XDG_RUNTIME_DIR ? [path.join(env.XDG_RUNTIME_DIR, 'hvsock', 'text')] : []
  return [...own, '/run/hvsock/text']
}

/** Opens a socket at the first path where a broker listens. */
async function open() {
  for (const at of paths()) {
    // Half-closes must not end the other direction.
    const socket = net.connect({ path: at, allowHalfOpen: true })
    try {
      await once(socket, 'connect')
      return socket
    } catch (error) {
      if (!['ENOENT', 'ENOTDIR', 'ECONNREFUSED'].includes(error.code)) throw error
    }
  }
  throw new Error(`no broker listens at ${paths().join(' or ')}; start one, or set HVSOCK_ENDPOINT`)
}

/** Reads the answer. What follows it stays in the socket. */
function answer(socket) {
  return new Promise((resolve, reject) => {
    let line = Buffer.alloc(0)
    const done = (error) => {
      socket.off('readable', read).off('error', done).off('end', ended)
      if (error) socket.destroy()
      error ? reject(error) : resolve(parse(line.toString()))
    }
    const ended = () => done(new Error('the broker ended the connection without an answer'))
    const read = () => {
      for (let chunk; (chunk = socket.read()) !== null;) {
        const end = chunk.indexOf('\n')
        line = Buffer.concat([line, end < 0 ? chunk : chunk.subarray(0, end)])
        if (line.length >= LONGEST_LINE) return done(new Error('the answer is no line of the text protocol'))
        if (end < 0) continue
        if (end + 1 < chunk.length) socket.unshift(chunk.subarray(end + 1))
        const [, label, reason] = /^ERR (\S+) ?(.*)$/.exec(line.toString()) ?? []
        if (label) return done(Object.assign(new Error(reason), { code: label }))
        return done(/^OK( |$)/.test(line) ? undefined : new Error('the answer is no line of the text protocol'))
      }
    }
    socket.on('readable', read).on('error', done).on('end', ended)
  })
}

/** The words of an `OK` by their keys. */
function parse(line) {
  const words = line.split(' ').slice(1)
  return Object.fromEntries(words.map((word) => [word.split('=', 1)[0], word.slice(word.indexOf('=') + 1)]))
}

async function ask(request) {
  const socket = await open()
  socket.write(`${request}\n`)
  return [socket, await answer(socket)]
}

/** Connects to a service. The error's `code` is the label of a refusal, such as `no_listener`. */
export async function connect(partition, service) {
  return (await ask(`CONNECT ${partition} ${service}`))[0]
}

/**
 * Listens, and calls `serve(socket, peer)` for each connection; `peer` has `partition`, `pid`, `uid` and more. The
 * listener emits `error` with the reason if the broker ends it, and `close`.
 */
export async function listen(from, service, serve, { waiting = 8 } = {}) {
  const [control, { token }] = await ask(`LISTEN ${from} ${service}`)
  const listener = new EventEmitter()
  let closed = false
  listener.close = () => {
    closed = true
    control.destroy()
  }
  let last = ''
  control.setEncoding('utf8').on('data', (text) => { last = (last + text).slice(-LONGEST_LINE) })
  control.on('end', () => control.destroy()).on('error', () => {}).on('close', () => {
    const [, label, reason] = /^ERR (\S+) (.*)$/m.exec(last) ?? []
    if (!closed) listener.emit('error', Object.assign(new Error(reason ?? 'the broker went away'), { code: label }))
    closed = true
    listener.emit('close')
  })
  // An ACCEPT waits for the next connection, so several take connections that come at once.
  const accept = async () => {
    while (!closed) {
      try {
        const [socket, peer] = await ask(`ACCEPT ${token}`)
        serve(socket, peer)
      } catch (error) {
        // With the listener its token ends; its own error says why.
        if (error.code === 'no_listener') return
        if (!closed) listener.emit('warning', error)
        await new Promise((resolve) => setTimeout(resolve, 100).unref())
      }
    }
  }
  for (let count = 0; count < waiting; count++) accept()
  return listener
}
