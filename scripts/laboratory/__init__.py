"""The argument of 2019 run again in virtual time: experiments beside what was published."""
