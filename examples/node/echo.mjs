// Echoes, or sends standard input, over Hyper-V sockets.
//
//   node echo.mjs listen FROM SERVICE
//   node echo.mjs http FROM SERVICE
//   node echo.mjs connect PARTITION SERVICE

import http from 'node:http'
import { connect, listen } from './hvsock.mjs'

const [command, partition, ...words] = process.argv.slice(2)
const service = words.join(' ')

function fail(error) {
  console.error(`echo: ${error.code ? `${error.code}: ` : ''}${error.message}`)
  process.exitCode = 1
}

async function serve(onConnection) {
  const listener = await listen(partition, service, onConnection)
  listener.on('error', fail).on('warning', fail)
  console.log('listening')
}

const commands = {
  listen: () => serve((socket, peer) => {
    console.log(`connection from ${peer.partition}`)
    socket.on('error', fail).pipe(socket)
  }),
  http: () => {
    const server = http.createServer((request, response) => response.end(`you asked for ${request.url}\n`))
    // Every server of Node that takes connections takes these.
    return serve((socket) => server.emit('connection', socket))
  },
  connect: async () => {
    const socket = await connect(partition, service)
    socket.on('error', fail)
    process.stdin.pipe(socket).pipe(process.stdout)
  },
}

if (commands[command] && service) commands[command]().catch(fail)
else fail(new Error('usage: echo.mjs listen|http FROM SERVICE | connect PARTITION SERVICE'))
