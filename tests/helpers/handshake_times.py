"""How long handshakes take through a link that loses datagrams: a model of the timers of RFC 6347.

A side that waits for an answer sends its flight again after 1, 2, 4, … seconds, at most 60 (section
4.2.4.1), and begins with 1 second again for its next flight. As with OpenSSL, a flight is one
datagram when it is first sent, and one for each message when it is sent again. Only these waits
take time.

Where the model simplifies, its handshakes take longer than real ones: after a loss, the messages
around a ``ChangeCipherSpec`` count only if they arrive in order, and each order is equally likely.
"""

from collections import Counter
from itertools import accumulate, pairwise
from math import comb, factorial, log, sqrt

LONGEST_WAIT = 60
# ServerHello, ServerKeyExchange, ServerHelloDone.
ANSWER = 3
# ClientKeyExchange or NewSessionTicket; ChangeCipherSpec; Finished.
FINISH = 3
DONE = "done"


class Handshakes:
    """Full handshakes with a pre-shared key, through a link that loses datagrams.

    A step of a handshake has a state (what has arrived) and a function. Given a state, the function
    returns the possible states after the step's flight is sent once more, with probabilities.

    :param loss: The share of datagrams that the link loses.
    """

    def __init__(self, loss):
        self._loss = loss
        self._arrival = 1 - loss

    def without_retransmission(self):
        """Return the share of handshakes that lose no datagram."""
        return self._arrival**6

    def complete(self, end):
        """Return, for each second up to ``end``, the share of handshakes that are complete."""
        total = [1.0] + [0.0] * end
        for state, send in (
            (None, self._ask_for_cookie),
            (None, self._return_cookie),
            (ANSWER, self._answer),
            ((0, 0), self._finish),
        ):
            total = _sum(total, _duration(end, state, send))
        return list(accumulate(total))

    def _ask_for_cookie(self, state, _is_first):
        """Send a ClientHello until a HelloVerifyRequest arrives."""
        return self._end_with(self._arrival**2, state)

    def _return_cookie(self, state, _is_first):
        """Send the second ClientHello until the server has it."""
        return self._end_with(self._arrival, state)

    def _answer(self, missing, is_first):
        """Send the server's messages until the client has all; it keeps those that arrive."""
        if is_first:
            return self._end_with(self._arrival, missing)
        return {
            left or DONE: comb(missing, left) * self._arrival ** (missing - left) * self._loss**left
            for left in range(missing + 1)
        }

    def _finish(self, state, is_first):
        """Send the client's last flight until the server has it and its own last flight arrives."""
        at_server, at_client = state
        after = Counter()
        if is_first:
            after[0, 0] = self._loss
            after.update(self._hear(self._arrival))
        elif at_server < FINISH:
            for number, chance in self._in_order(FINISH - at_server):
                if at_server + number < FINISH:
                    after[at_server + number, 0] += chance
                else:
                    after.update(self._hear(chance))
        else:
            after[state] = self._loss  # Finished is lost, so the server does not repeat its flight
            for number, chance in self._in_order(FINISH - at_client):
                is_all = at_client + number == FINISH
                after[DONE if is_all else (FINISH, at_client + number)] += self._arrival * chance
        return after

    def _hear(self, probability):
        """Send the server's last flight for the first time."""
        return {DONE: probability * self._arrival, (FINISH, 0): probability * self._loss}

    def _end_with(self, probability, state):
        return {DONE: probability, state: 1 - probability}

    def _in_order(self, count):
        """Yield how many of the next messages may arrive in order, with probabilities."""
        at_least = [self._arrival**number / factorial(number) for number in range(count + 1)]
        for number, (some, more) in enumerate(pairwise([*at_least, 0.0])):
            yield number, some - more


def margin(samples, risk):
    """Return how far sample shares may be below those of their distribution, or above them.

    Except with probability ``risk``, all of them are within this margin: it is Massart's one-sided
    form of the Dvoretzky-Kiefer-Wolfowitz inequality.
    """
    return sqrt(-log(risk) / (2 * samples))


def _duration(end, start, send):
    """Return the distribution of a step's duration: a probability for each second."""
    seconds, states = [0.0] * (end + 1), Counter({start: 1.0})
    for moment in _sendings(end):
        after = Counter()
        for state, probability in states.items():
            for arrived, chance in send(state, moment == 0).items():
                after[arrived] += probability * chance
        seconds[moment] = after.pop(DONE, 0.0)
        states = after
    return seconds


def _sendings(end):
    """Yield the seconds at which a flight that is never answered is sent."""
    moment, wait = 0, 1
    while moment <= end:
        yield moment
        moment, wait = moment + wait, min(2 * wait, LONGEST_WAIT)


def _sum(one, other):
    """Return the distribution of the sum of two independent times."""
    end = len(one)
    total = [0.0] * end
    for first, probability in enumerate(one):
        for second in range(end - first):
            total[first + second] += probability * other[second]
    return total
